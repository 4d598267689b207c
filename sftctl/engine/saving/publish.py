"""A model folder to the Hugging Face Hub. What could stop it is asked first, before any slow work.

The token is read by huggingface_hub alone and never shown: errors are told by their kind and status, not by their
text, which quotes requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sftctl.engine.model.hub import cache_only
from sftctl.errors import Problem, RunError

PUSH = "--push"


def refuse_push(repo_id: str) -> None:
    """Raise RunError where `repo_id` cannot be pushed to from here: its form, no network, no token, one refused."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        message = f"{repo_id!r} is not the name of a repository on the Hub"
        raise RunError(Problem(PUSH, message, help="write USER/NAME")) from None
    if "/" not in repo_id:
        raise RunError(Problem(PUSH, f"{repo_id!r} does not say whose it is", help=f"write USER/{repo_id}"))
    if get_token() is None:
        message = "there is no token to push with"
        raise RunError(Problem(PUSH, message, help="log in with 'hf auth login', or set HF_TOKEN"))
    if cache_only():
        message = "the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        raise RunError(Problem(PUSH, message, help="leave out --push, and push the folder later"))
    _asked(repo_id, lambda api: api.whoami())


def push(folder: Path, repo_id: str, *, public: bool) -> str:
    """Upload `folder` as one commit, making the repository where there is none. Its address."""

    def upload(api: HfApi) -> str:
        api.create_repo(repo_id, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with sftctl export")
        return f"{api.endpoint}/{repo_id}"

    address: str = _asked(repo_id, upload)
    return address


def _asked(repo_id: str, ask: Any) -> Any:
    try:
        return ask(HfApi())
    except HfHubHTTPError as error:
        status = error.response.status_code
        refused = "the Hub refuses the token" if status in (401, 403) else f"the Hub answers with {status}"
        help = "log in with a token that may write: 'hf auth login'" if status in (401, 403) else "try again later"
        raise RunError(Problem(PUSH, f"{repo_id}: {refused}", help=help)) from None
    except (HTTPError, OSError) as error:  # connections, in every form; the first is its HTTP client's own
        message = f"{repo_id}: the Hub cannot be reached ({type(error).__name__})"
        raise RunError(Problem(PUSH, message, help="the exported folder is whole: push it later")) from None
