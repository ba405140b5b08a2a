"""Published numbers of others, each with its source: ``results/published/literature.yaml``, read strictly. No torch."""

from functools import lru_cache
from pathlib import Path

from pydantic import Field, RootModel, ValidationError

from risf_core.data_params import Strictly
from risf_core.errors import RecordError
from risf_core.runs.yaml_files import nearest, project_root, read_yaml

FILE = Path("results") / "published" / "literature.yaml"


class Published(Strictly):
    """A published number."""

    value: float = Field(description="as printed there")
    what: str = Field(min_length=1, description="of which system, data and metric")
    source: str = Field(pattern=r"^https?://", description="address of the page that prints it")


class _Literature(RootModel[dict[str, Published]]):
    """All of the file."""


@lru_cache(maxsize=4)
def literature(path: Path | None = None) -> dict[str, Published]:
    """Every published number by its id; a project without the file takes the one beside this code.

    Raises:
        RecordError: If the file is missing or an entry is not a number with its source.
    """
    if path is None:
        path = project_root() / FILE
        path = path if path.is_file() else Path(__file__).resolve().parents[2] / FILE
    if not path.is_file():
        raise RecordError(
            f"{path}: there is no such file; it holds the published numbers with their sources."
        )
    try:
        return _Literature.model_validate(read_yaml(path)).root
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {where}: {first['msg']}; expected value, what and source.") from None


def published(name: str) -> Published:
    """One published number.

    Raises:
        RecordError: If there is no such id; the nearest is named.
    """
    found = literature()
    if name not in found:
        raise RecordError(f"{FILE}: there is no {name} (nearest: {nearest(name, found)}).")
    return found[name]
