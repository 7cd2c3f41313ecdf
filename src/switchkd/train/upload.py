"""Folders of models go to the Hugging Face hub: the finished student, where `train.arguments` says so, and what is exported."""

from pathlib import Path

from switchkd.recipe.schema import Recipe


def make_repository(name: str, *, private: bool | None, asked: str) -> None:
    """Make the repository, if it is not there, before anything takes long: without a token or a network, this is the moment to say so.

    Raises:
        OSError: it cannot be made; `asked` is what wanted it.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=private, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{asked}: {name} cannot be made on the hub: {reason}") from error


def send(folder: Path, name: str, *, message: str, revision: str | None = None) -> None:
    """Upload a folder."""
    from huggingface_hub import HfApi

    if revision:
        HfApi().create_branch(name, branch=revision, exist_ok=True)
    HfApi().upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)


def prepare_upload(recipe: Recipe) -> None:
    """Make the repository of a recipe's student, where it is to be uploaded. Raises OSError where it cannot be made."""
    arguments = recipe.train.arguments
    if arguments.get("push_to_hub"):
        private = arguments.get("hub_private_repo")
        make_repository(arguments["hub_model_id"], private=private, asked="train.arguments.push_to_hub")


def upload(recipe: Recipe, student: Path) -> None:
    """Upload the folder of the finished student, where the recipe says so."""
    arguments = recipe.train.arguments
    if arguments.get("push_to_hub"):
        revision = arguments.get("hub_revision")
        send(student, arguments["hub_model_id"], message="Distilled by switchkd", revision=revision)
