"""``claims.yaml``, read strictly: what the paper says, the evidence and the rule that decide, fixed before the runs.

A wrong name, type or combination is one error that says where. Imports no torch.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from risf_core.data_params import Many, Positive, Share, Strictly
from risf_core.errors import RisfError
from risf_core.runs.yaml_files import explain, nearest, project_root, read_yaml

FILE = "claims.yaml"
SIGN_RULES = {
    "all_above_zero": "above",
    "all_below_zero": "below",
    "as_expected": None,
}  # and what each expects
ORDER_RULES = ("rising", "falling")
Expectation = Literal["above", "below", "near"]
Text = Annotated[str, Field(min_length=1)]


class ClaimsError(RisfError):
    """``claims.yaml`` is wrong, or names what no record can give."""


class Family(Strictly):
    """What all claims share: level, correction, and what counts as relevant."""

    alpha: Share = Field(description="level of the whole family of tests")
    correction: Literal["holm"] = Field(description="correction for their number")
    smallest_relevant: Positive = Field(
        description="smallest difference that matters, in points of the metric"
    )
    underpowered_above: Positive = Field(
        description="half-width above which a difference is called underpowered"
    )
    metric: Literal["nAP50"] = Field(description="metric of the effects")


class Evidence(Strictly):
    """One number that a claim rests on: an effect, a quantity of the headline, or a cell of a table."""

    profile: Text = Field(description="whose records hold it")
    effect: Text | None = Field(None, description="row of the table claims_effects, such as 'cm_clip - none'")
    loss: Text | None = Field(None, description="loss of the effect")
    arm: Text | None = Field(None, description="arm of the effect")
    shots: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(None, description="K of the effect")
    quantity: Text | None = Field(None, description="name in the headline, word for word")
    table: Text | None = Field(None, description="name of a table")
    where: dict[str, int | float | str] | None = Field(None, description="values that name one of its rows")
    value: Text | None = Field(None, description="column of the number")
    half_width: Text | None = Field(None, description="column of its half-width")
    count: Text | None = Field(None, description="column of n")
    expect: Expectation | None = Field(None, description="for the rule as_expected")
    text: Text | None = Field(None, description="what to call it")

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = [name for name in ("effect", "quantity", "table") if getattr(self, name)]
        if len(forms) != 1:
            got = " and ".join(forms) or "none of them"
            raise ValueError(f"names one effect, quantity or table, got {got}")
        fields = {
            "effect": {"loss", "arm", "shots"},
            "quantity": set(),
            "table": {"where", "value", "half_width", "count"},
        }
        allowed = fields.pop(forms[0])
        foreign = sorted(name for names in fields.values() for name in names - allowed if getattr(self, name))
        if foreign:
            raise ValueError(f"{foreign[0]}: has no meaning beside {forms[0]}")
        if self.table and not (self.where and self.value):
            raise ValueError("a table needs where and value")
        return self

    def name(self) -> str:
        """What to call it: its text, or what it names."""
        if self.text:
            return self.text
        if self.quantity:
            return self.quantity
        if self.effect:
            shots = {None: None, "all": "mean over K"}.get(self.shots, f"K={self.shots}")
            parts = (self.effect.replace(" - ", " − "), self.loss, self.arm, shots)
            return ", ".join(part for part in parts if part)
        where = ", ".join(f"{name} {value}" for name, value in self.where.items())
        return f"{self.value} of {self.table} ({where})"

    def key(self) -> str:
        """The same for the same number, whatever it is called and whatever is expected of it."""
        return self.model_copy(update={"text": None, "expect": None}).model_dump_json()


class PublishedValue(Strictly):
    """Two published numbers to set against each other."""

    what: Text = Field(description="what is compared")
    paper: float = Field(description="the paper's number")
    other: float = Field(description="the other's")
    other_name: Text = Field(description="who the other is")
    source: Text = Field(description="where both stand")


class Claim(Strictly):
    """A claim of the paper, or an open question, with what decides it."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="anchor on the page")
    says: Text = Field(description="the claim in our words")
    where: Text | None = Field(None, description="where the paper says it")
    kind: Literal["test", "levels", "published", "question"] = Field(description="how it is decided")
    evidence: Many[Evidence] = Field((), description="the numbers")
    values: Many[PublishedValue] = Field((), description="published numbers")
    n: Text | None = Field(None, description="what the evidence varies")
    rule: Literal["all_above_zero", "all_below_zero", "as_expected", "rising", "falling"] | None = Field(
        None, description="when it holds"
    )
    notebook: Many[Text] = Field((), description="names of the notebooks that make the evidence")
    reason: Text | None = Field(None, description="a sentence beside the verdict")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "published":
            if not self.values or self.evidence or self.rule:
                raise ValueError("kind published needs values, and has neither evidence nor rule")
            return self
        if self.values:
            raise ValueError(f"values belong to kind published, not to {self.kind}")
        if not (self.evidence and self.rule and self.notebook):
            raise ValueError(f"kind {self.kind} needs evidence, rule and notebook")
        allowed = {"test": tuple(SIGN_RULES), "levels": ORDER_RULES}.get(
            self.kind, (*SIGN_RULES, *ORDER_RULES)
        )
        if self.rule not in allowed:
            raise ValueError(f"rule: kind {self.kind} takes {', '.join(allowed)}, got {self.rule}")
        if self.rule in ORDER_RULES and len(self.evidence) < 2:
            raise ValueError(f"rule {self.rule} needs two numbers or more")
        lacking = [evidence.name() for evidence in self.evidence if not evidence.expect]
        if self.rule == "as_expected" and lacking:
            raise ValueError(f"rule as_expected: {lacking[0]}: say expect: above, below or near")
        if self.rule != "as_expected" and len(lacking) < len(self.evidence):
            raise ValueError("expect belongs to the rule as_expected")
        return self

    def expectations(self) -> tuple[Expectation | None, ...]:
        """What the rule expects of each piece of evidence; None where it asks for an order alone."""
        return tuple(evidence.expect or SIGN_RULES.get(self.rule) for evidence in self.evidence)


class ClaimsFile(Strictly):
    """All of ``claims.yaml``."""

    family: Family = Field(description="what all claims share")
    claims: Many[Claim] = Field(min_length=1, description="the paper's claims")
    questions: Many[Claim] = Field((), description="open questions")

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        counts = Counter(claim.id for claim in self.all())
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"id {twice[0]} is given twice")
        if wrong := [claim.id for claim in self.claims if claim.kind == "question"]:
            raise ValueError(f"claims: {wrong[0]}: a question belongs under questions")
        if wrong := [claim.id for claim in self.questions if claim.kind != "question"]:
            raise ValueError(f"questions: {wrong[0]}: expected kind: question")
        return self

    def all(self) -> tuple[Claim, ...]:
        """Claims, then questions."""
        return (*self.claims, *self.questions)

    def profiles(self) -> tuple[str, ...]:
        """Profiles whose records the evidence needs, sorted."""
        return tuple(sorted({evidence.profile for claim in self.all() for evidence in claim.evidence}))

    def family_keys(self, *, questions: bool = False) -> tuple[str, ...]:
        """Keys of the distinct numbers whose sign is tested, in the order of the file: a family of the correction.

        Claims and questions are two families, so that a question that is added changes no verdict on a claim.
        """
        tested = (
            claim for claim in (self.questions if questions else self.claims) if claim.rule in SIGN_RULES
        )
        keys = (
            evidence.key()
            for claim in tested
            for evidence, expected in zip(claim.evidence, claim.expectations(), strict=True)
            if expected in ("above", "below")
        )
        return tuple(dict.fromkeys(keys))


def read_claims(path: Path | None = None) -> ClaimsFile:
    """The claims of a file, by default of ``claims.yaml`` in the project's root.

    Raises:
        ClaimsError: In one line, if the file is missing, holds an unknown name, a wrong type or value, or names a
            profile or notebook that is not there.
    """
    path = Path(path) if path else project_root() / FILE
    if not path.is_file():
        raise ClaimsError(f"{path}: there is no such file; it names the claims and what decides them.")
    try:
        claims = ClaimsFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ClaimsError(f"{path}: {_placed(error)}") from None
    _check_names(path, claims)
    return claims


def _placed(error: ValidationError) -> str:
    """Pydantic's complaints, a claim named by its id where it has one."""
    return explain(error, ClaimsFile)


def _check_names(path: Path, claims: ClaimsFile) -> None:
    """Refuse profiles and notebooks that are not there."""
    root = project_root()
    known: dict[str, list[str]] = {
        "profile": sorted(folder.name for folder in (root / "params").glob("*") if folder.is_dir()),
        "notebook": sorted(file.stem for file in (root / "notebooks").glob("*.ipynb")),
    }
    for claim in claims.all():
        named: list[tuple[str, Any]] = [("profile", evidence.profile) for evidence in claim.evidence]
        for kind, name in [*named, *(("notebook", name) for name in claim.notebook)]:
            if name not in known[kind]:
                hint = f" (nearest: {nearest(name, known[kind])})" if known[kind] else ""
                raise ClaimsError(f"{path}: {claim.id}: there is no {kind} {name}{hint}.")
