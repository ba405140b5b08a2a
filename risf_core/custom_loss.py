"""Losses by name, and the user's own: ``path/to/file.py:function``.

Importing this file does not import torch, so that parameters, run ids and tables can name a loss at no cost.
"""

import difflib
import hashlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

from risf_core.errors import ParamsError
from risf_core.runs.yaml_files import project_path

BUILT_IN_LOSSES = ("bnrl", "ce", "ce_bg")
EXPECTED = (
    "expected function(logits [N, C+1] with background last, labels int64 [N]) -> scalar, a mean over RoIs"
)


def is_custom(spec: str) -> bool:
    """Whether the name points to a file of the user's own."""
    return ".py:" in spec


def check_loss_name(spec: str) -> None:
    """Refuse a name that is neither built in nor ``path/to/file.py:function``; touches no file.

    Raises:
        ParamsError: With the valid choices and the nearest of them.
    """
    if spec in BUILT_IN_LOSSES or (is_custom(spec) and _split(spec)[1].isidentifier()):
        return
    if spec.endswith(".py") or is_custom(spec):
        raise ParamsError(f'loss "{spec}" names a file but no function; write path/to/file.py:function.')
    near = difflib.get_close_matches(spec.lower(), BUILT_IN_LOSSES, n=1, cutoff=0.4)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    raise ParamsError(
        f'loss "{spec}" is unknown: expected {", ".join(BUILT_IN_LOSSES)} or path/to/file.py:function{hint}'
    )


def loss_name(spec: str) -> str:
    """Short label for tables: ``focal`` for ``ideas/my.py:focal``; ``my:ce`` where it would hide a built-in
    name."""
    if not is_custom(spec):
        return spec
    path, function = _split(spec)
    return f"{Path(path).stem}:{function}" if function in BUILT_IN_LOSSES else function


def load_custom_loss(spec: str) -> Callable:
    """Import ``path/to/file.py:function`` and check its contract on random RoIs before anything is trained.

    A relative path starts from the project's root, wherever the notebook is. The file stands alone: its neighbours
    cannot be imported from it, since only its own content enters the run id.

    Raises:
        ParamsError: In one line that says what was found and what was expected.
    """
    check_loss_name(spec)
    path, name = _find_file(spec), _split(spec)[1]
    module = _import_file(path, spec)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        found = f"it defines {', '.join(sorted(own))}" if own else "it defines no function"
        raise ParamsError(f'loss "{spec}": {path.name} has no function "{name}"; {found}.')
    check_contract(function, spec)
    return function


def check_contract(function: Callable, spec: str) -> None:
    """Call a loss on random RoIs: mixed labels, background alone, one class alone, few and many classes.

    Raises:
        ParamsError: If it fails, or returns anything but one finite number with a finite gradient that is not
        zero.
    """
    import torch  # here, since params and run must import this file without torch

    # the check must not move the random state that training starts from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for num_rois, num_classes in ((32, 5), (1, 1), (64, 20)):
            labels = torch.randint(0, num_classes + 1, (num_rois,))
            labels[0] = 0
            background = torch.full((num_rois,), num_classes)
            for name, given in (("random RoIs", labels), ("RoIs of background alone", background)):
                _check_one(function, spec, torch.randn(num_rois, num_classes + 1), given, name)


def _check_one(function, spec: str, logits, labels, situation: str) -> None:
    import torch  # see check_contract

    def broken(what: str) -> ParamsError:
        where = f"{situation} (logits {list(logits.shape)})"
        return ParamsError(f'loss "{spec}" {what} on {where}; {EXPECTED}.')

    leaf = logits.clone().requires_grad_()
    given_logits = leaf * 1.0  # not a leaf, so that an in-place change is seen and not refused
    given_labels = labels.clone()
    try:
        loss = function(given_logits, given_labels)
    except Exception as error:  # whatever the user's code raises is reported as theirs
        raise broken(f"raised {_one_line(error)}") from error
    if not isinstance(loss, torch.Tensor):
        raise broken(f"returned a {type(loss).__name__}, not a tensor,")
    if loss.ndim != 0 or not loss.is_floating_point():
        raise broken(f"returned {loss.dtype} of shape {list(loss.shape)}")
    if not torch.equal(given_logits, logits) or not torch.equal(given_labels, labels):
        raise broken("changed its inputs in place")
    if not loss.isfinite():
        raise broken(f"returned {loss.item()}, not a finite number,")
    if not loss.requires_grad:
        raise broken("returned a tensor without a gradient (detached, or not computed from the logits)")
    try:
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    except RuntimeError as error:
        raise broken(f"has no gradient: {_one_line(error)}") from error
    if gradient is not None and not gradient.isfinite().all():
        raise broken("has a gradient that is not finite")
    if gradient is None or (not gradient.any() and (labels < logits.shape[1] - 1).any()):
        # for background alone that may be the idea
        raise broken("has a gradient of zero with respect to the logits")


def _split(spec: str) -> tuple[str, str]:
    path, _, function = spec.rpartition(":")
    return path, function


def _find_file(spec: str) -> Path:
    path = project_path(_split(spec)[0])
    if not path.is_file():
        raise ParamsError(f'loss "{spec}": there is no file {path}; a relative path starts from the project.')
    return path


def _import_file(path: Path, spec: str) -> types.ModuleType:
    """Import under a name made of path and content: two files, or two versions of one, never meet.

    Compiled here, since Python's own cache takes a file for unchanged when its second and its size are.
    """
    source = path.read_bytes()
    name = "risf_custom_loss_" + hashlib.sha256(str(path).encode() + source).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # before execution, as imports do it: dataclasses look their module up there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  the user's own file
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ParamsError(f'loss "{spec}": {path} cannot be imported: {_one_line(error)}') from error
    return module


def _one_line(error: BaseException) -> str:
    """Type, first line and place of an error of the user's code."""
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return message + place
