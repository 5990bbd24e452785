"""The throw-away child that asks llama.cpp what a model would need. Run as `python -m llm_core.dry_run`.

In: LoadParams as JSON on stdin. Out: JSON on stdout, the buffers and the process itself, or an error.
"""

import dataclasses
import json
import os
import sys
from typing import Any

from llm_core.call_params import LoadParams
from llm_core.errors import GgufFlowError


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever llama.cpp prints must not break the answer
    # The same modules as the process that will hold the model, so that the overhead measured here is that one's.
    import llm_core.engine
    import llm_core.worker_child  # noqa: F401

    json.dump(_measure(LoadParams(**json.load(sys.stdin))), out)
    out.close()
    os._exit(0)  # nothing here is worth an orderly unload


def _measure(load: LoadParams) -> dict[str, Any]:
    from llm_core.llama_model import LlamaModel
    from llm_core.machine import peak_rss_bytes, process_vram_bytes
    from llm_core.memory_breakdown import memory_breakdown, projector_memory

    try:
        llama = LlamaModel(load, dry_run=True)
        uses = memory_breakdown(llama.context)
        projector = projector_memory(load) if load.mmproj else {}
    except (GgufFlowError, LookupError) as error:
        return {"error": str(error)}
    return {
        "buffers": [dataclasses.asdict(use) for use in uses],
        "projector": projector,
        # Logits of one token per sequence, which llama.cpp allocates at the first decode.
        "output_bytes": llama.n_vocab * 4 * load.sequences,
        "process_ram_bytes": peak_rss_bytes(),
        "process_vram_bytes": None if load.gpu is None else process_vram_bytes(os.getpid(), load.gpu),
    }


if __name__ == "__main__":
    main()
