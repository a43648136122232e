"""Stage `fetch`: a checkpoint repository from the Hugging Face Hub at a pinned commit.

A stage of its own, so that what the checkpoint stage depends on is always a local path that DVC can
hash and cache. Large files are hashed here, because the client accepts a body that was corrupted
without a change of size.
"""

import hashlib
import shutil
from pathlib import Path

from huggingface_hub import model_info, snapshot_download

from export.artifacts import HUB
from export.params import load_params
from export.stage import disk_is_full, progress, run_stage
from pi05_runtime.errors import CheckpointError, ParamsError
from pi05_runtime.staging import staged


def main(name: str) -> None:
    hub = load_params().hub
    if name not in hub:
        raise ParamsError(f"params.yaml: hub has no entry {name!r}; it has {sorted(hub)}")
    repo, revision = hub[name].repo, hub[name].revision
    with staged(HUB / name) as folder:
        try:
            snapshot_download(repo, revision=revision, local_dir=folder)
            hashes = stored_hashes(repo, revision)
        except Exception as error:  # of the hub, its HTTP client or its transfer: they share no base
            if disk_is_full(error):
                raise
            raise CheckpointError(
                f"{repo} at {revision} cannot be fetched: {error}. Check the name, the commit, the "
                "network, and `hf auth login` for a gated repository"
            ) from error
        check_hashes(folder, hashes)
        # The client's notes hold the time of the download: the same commit would hash differently.
        shutil.rmtree(folder / ".cache", ignore_errors=True)


def stored_hashes(repo: str, revision: str) -> dict[str, str]:
    """File -> sha256 of the large files of a commit, as the Hub keeps them."""
    siblings = model_info(repo, revision=revision, files_metadata=True).siblings or []
    return {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs is not None}


def check_hashes(folder: Path, hashes: dict[str, str]) -> None:
    """Errors: CheckpointError naming a file that is not what the Hub keeps."""
    for name, expected in progress(hashes.items(), desc="fetch hashes", unit="file"):
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CheckpointError(
                f"{name}: sha256 {found} downloaded, {expected} expected: it was damaged on the way; "
                "fetch again"
            )


if __name__ == "__main__":
    run_stage(main)
