"""Names of nets on the Hugging Face hub, as `model.backbone` gives them: hf-hub:OWNER/NAME, or with @REVISION."""

import re
from dataclasses import dataclass

from dermkit.errors import UsageError

HUB_PREFIX = "hf-hub:"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?")


@dataclass(frozen=True)
class HubName:
    """A repository of the hub. revision: a commit, branch or tag; "" = the newest, or the one that is cached."""

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        """Return the name as `model.backbone` gives it."""
        return f"{HUB_PREFIX}{self.repository}{f'@{self.revision}' if self.revision else ''}"


def is_hub_name(backbone: str) -> bool:
    """Return whether a backbone is named by its repository on the hub."""
    return backbone.startswith(HUB_PREFIX)


def parse_hub_name(backbone: str) -> HubName:
    """Return the repository and revision of hf-hub:OWNER/NAME@REVISION; raises `UsageError` for another form."""
    match = _NAME.fullmatch(backbone.removeprefix(HUB_PREFIX))
    if match is None or ".." in backbone:
        raise UsageError(
            f"{backbone[:300]}: is not the name of a repository on the hub",
            outcome="nothing was trained",
            remedy="write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION",
        )
    return HubName(match["repository"], match["revision"] or "")
