"""Hashing gigabytes once, and again only when the file has changed."""

import os
from pathlib import Path

from llm_core.fingerprint import sha256

# The two digests are those of FIPS 180-2's example "abc" and of nothing.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def rewrite(path: Path, text: str, mtime_ns: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    for text, digest in (("abc", ABC), ("", NOTHING)):
        (tmp_path / "file").write_text(text)
        assert sha256(tmp_path / "file", tmp_path / "cache") == digest


def test_file_of_the_same_size_and_time_is_not_read_again(tmp_path: Path) -> None:
    rewrite(tmp_path / "file", "abc", mtime_ns=1)
    sha256(tmp_path / "file", tmp_path / "cache")
    rewrite(tmp_path / "file", "xyz", mtime_ns=1)
    assert sha256(tmp_path / "file", tmp_path / "cache") == ABC


def test_file_with_another_time_is_hashed_anew(tmp_path: Path) -> None:
    rewrite(tmp_path / "file", "xyz", mtime_ns=1)
    sha256(tmp_path / "file", tmp_path / "cache")
    rewrite(tmp_path / "file", "abc", mtime_ns=2)
    assert sha256(tmp_path / "file", tmp_path / "cache") == ABC


def test_link_and_target_share_one_remembered_digest(tmp_path: Path) -> None:
    rewrite(tmp_path / "file", "abc", mtime_ns=1)
    (tmp_path / "link").symlink_to("file")
    sha256(tmp_path / "file", tmp_path / "cache")
    sha256(tmp_path / "link", tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "sha256").iterdir())) == 1


def test_cache_that_cannot_be_written_does_not_keep_the_digest_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert sha256(tmp_path / "file", tmp_path / "cache") == ABC
