"""A model of the hub as it was at a commit, a tag or a branch."""

from pathlib import Path

#: What a model is opened from: no pickles, no code.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def at_revision(path: str, revision: str | None) -> str:
    """The folder of a model's files at a revision; the path itself where none is named.

    Raises:
        ValueError: a folder has no revisions.
        OSError: the hub, or its cache where this is offline, does not have it.
    """
    if revision is None:
        return path
    if Path(path).exists():
        raise ValueError(f"{path} is a folder and has no revision {revision!r}: leave `revision` out")
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(path, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{path} at revision {revision!r} cannot be had from the Hugging Face hub or its cache: {reason}"
        ) from error
