"""Where a model that a recipe names is opened, at its commit, tag or branch."""

from pathlib import Path

from switchkd.models.run_folder import model_folder

#: What a model is opened from: no pickles, no code.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def at_revision(path: str, revision: str | None) -> str:
    """The folder of a model's files at a revision; where none is named, that of a run's student, or the path itself.

    Raises:
        ValueError: a folder has no revisions; a run has no student yet.
        OSError: the hub, or its cache where this is offline, does not have it.
    """
    if revision is None:
        return model_folder(path)
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
