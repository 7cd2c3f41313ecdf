"""The finished student goes to the Hugging Face hub, where `train.arguments` says so."""

from pathlib import Path

from switchkd.recipe.schema import Recipe


def prepare_upload(recipe: Recipe) -> None:
    """Make the repository before anything is trained: without a token or a network, this is the moment to say so.

    Raises:
        OSError: it cannot be made.
    """
    arguments = recipe.train.arguments
    if not arguments.get("push_to_hub"):
        return
    from huggingface_hub import HfApi

    name = arguments["hub_model_id"]
    try:
        HfApi().create_repo(name, private=arguments.get("hub_private_repo"), exist_ok=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"train.arguments.push_to_hub: {name} cannot be made on the hub: {reason}") from error


def upload(recipe: Recipe, student: Path) -> None:
    """Upload the folder of the finished student."""
    arguments = recipe.train.arguments
    if not arguments.get("push_to_hub"):
        return
    from huggingface_hub import HfApi

    name, revision = arguments["hub_model_id"], arguments.get("hub_revision")
    if revision:
        HfApi().create_branch(name, branch=revision, exist_ok=True)
    HfApi().upload_folder(repo_id=name, folder_path=student, revision=revision, commit_message="Distilled by switchkd")
