"""The kernel of a launched notebook: IPython's own, but it dies with the worker that started it.

``python -m risf_core.runs.kernel -f CONNECTION_FILE``
"""

import ctypes
import os
import signal


def die_with_parent(parent: int | None = None) -> None:
    """Have this process killed when the process that started it ends, however that ends (Linux; elsewhere nothing).

    Args:
        parent: Its process id, where known: if it is gone already, this process ends here.
    """
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG, linux/prctl.h
    except (OSError, AttributeError):
        return
    if parent is not None and os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(os.environ["RISF_WORKER"]))
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
