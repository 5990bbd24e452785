"""How sure one can be of a share of right answers, and of the difference between two."""

import math
import random
import statistics
from collections.abc import Sequence

Z_95 = statistics.NormalDist().inv_cdf(0.975)
N_RESAMPLES = 10_000


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson, JASA 22, 1927, pp. 209-212).

    Args:
        share: of `n` independent trials that came out right, 0 to 1. A mean over several draws at each trial may stand
            here too: it varies less than one draw does, so that the interval is too wide rather than too narrow.
    """
    centre = share + Z_95**2 / (2 * n)
    reach = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def bootstrap_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean of paired differences (Efron, Annals of Statistics 7, 1979).

    Args:
        differences: one a question, the same questions on both sides; questions are what is drawn anew.
        seed: of the resampling.
    """
    drawn = random.Random(seed)
    means = sorted(statistics.fmean(drawn.choices(differences, k=len(differences))) for _ in range(N_RESAMPLES))
    return means[round(0.025 * N_RESAMPLES)], means[round(0.975 * N_RESAMPLES) - 1]
