"""The Hugging Face Hub's exceptions mapped to ours, once, at this border.

This file does not know which request failed or what it was for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcp_core.errors import HubError, InvalidModel, McpError, ModelNotFound

__all__ = ["hub_errors"]

_ACCESS_HINT = (
    "Give a token that may read it: HF_TOKEN in the environment, HF_TOKEN in Streamlit's secrets, "
    "or the field on the Recipe page."
)


@contextmanager
def hub_errors(repo_id: str, token: str | None) -> Iterator[None]:
    """Run Hub calls for ``repo_id``; what they raise becomes HubError, ModelNotFound or InvalidModel."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.SafetensorsParsingError as error:
        raise InvalidModel(f"The safetensors files of {repo_id} are damaged.", "Choose another model.") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(
            f"{repo_id} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub.",
            "Unset HF_HUB_OFFLINE, or choose a model that is on this machine.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error, token) from error
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        raise HubError(
            f"The Hub could not be reached for {repo_id} ({type(error).__name__}).",
            "Check the network (HF_ENDPOINT names a mirror), or choose a model that is on this machine.",
        ) from error


def _refused(repo_id: str, error: Exception, token: str | None) -> McpError:
    """What an HTTP answer other than success means."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo_id} is gated: its owner must grant access to your account.", _ACCESS_HINT)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo_id} has no such revision.", "Leave the revision empty for the newest.")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InvalidModel(
            f"{repo_id} lacks a file that a model needs ({error.response.url.path}).", "Choose another."
        )
    if status in {401, 403} and token:
        return HubError(f"The Hub refused the token for {repo_id}.", _ACCESS_HINT)
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"The Hub shows no model {repo_id}.", f"Check the spelling. If it is private: {_ACCESS_HINT}"
        )
    if status in {401, 403}:
        return HubError(f"{repo_id} is not open to everybody.", _ACCESS_HINT)
    return HubError(f"The Hub answered {status} for {repo_id}.", "Try again in a moment.")
