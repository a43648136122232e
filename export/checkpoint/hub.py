"""Stage `fetch`: a checkpoint repository from the Hugging Face Hub at a pinned commit.

A stage of its own, so that what the checkpoint stage depends on is always a local path that DVC can
hash and cache.
"""

import shutil

from huggingface_hub import snapshot_download

from export.params import load_params
from export.stage import ARTIFACTS, disk_is_full, run_stage, staged
from pi05_runtime.errors import CheckpointError, ParamsError


def main(name: str) -> None:
    hub = load_params().hub
    if name not in hub:
        raise ParamsError(f"params.yaml: hub has no entry {name!r}; it has {sorted(hub)}")
    repo, revision = hub[name].repo, hub[name].revision
    with staged(ARTIFACTS / "hub" / name) as folder:
        try:
            snapshot_download(repo, revision=revision, local_dir=folder)
        except Exception as error:  # of the hub, its HTTP client or its transfer: they share no base
            if disk_is_full(error):
                raise
            raise CheckpointError(
                f"{repo} at {revision} cannot be fetched: {error}. Check the name, the commit, the "
                "network, and `hf auth login` for a gated repository"
            ) from error
        # The client's notes hold the time of the download: the same commit would hash differently.
        shutil.rmtree(folder / ".cache", ignore_errors=True)


if __name__ == "__main__":
    run_stage(main)
