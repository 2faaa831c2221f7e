"""revolve trains any PyTorch model inside a byte budget, in the least time.

Names are loaded on first use, so that ``import revolve`` costs nothing and the schedules need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.devices import DEVICES, DeviceDescription, calibrate
    from .runtime.instrumentation import checkpointed, restore
    from .runtime.linearization import Stages, linearize
    from .runtime.profiling import measure
    from .runtime.replay import is_recomputing
    from .runtime.verification import Report, verify
    from .schedules import (
        Action,
        Backward,
        BudgetError,
        Chain,
        ChainError,
        Drop,
        Forward,
        Frontier,
        InfeasibleBudget,
        Load,
        Loss,
        Plan,
        Rebuild,
        RevolveError,
        Save,
        ScheduleError,
        Simulation,
        SolverMemoryError,
        Stage,
        Store,
        simulate,
        solve,
    )

__version__ = "0.1.0"

__all__ = [
    "DEVICES",
    "Action",
    "Backward",
    "BudgetError",
    "Chain",
    "ChainError",
    "DeviceDescription",
    "Drop",
    "Forward",
    "Frontier",
    "InfeasibleBudget",
    "Load",
    "Loss",
    "Plan",
    "Rebuild",
    "Report",
    "RevolveError",
    "Save",
    "ScheduleError",
    "Simulation",
    "SolverMemoryError",
    "Stage",
    "Stages",
    "Store",
    "calibrate",
    "checkpointed",
    "is_recomputing",
    "linearize",
    "measure",
    "restore",
    "simulate",
    "solve",
    "verify",
]

RUNTIME = {
    "DEVICES": "revolve.runtime.devices",
    "DeviceDescription": "revolve.runtime.devices",
    "calibrate": "revolve.runtime.devices",
    "checkpointed": "revolve.runtime.instrumentation",
    "restore": "revolve.runtime.instrumentation",
    "measure": "revolve.runtime.profiling",
    "linearize": "revolve.runtime.linearization",
    "Stages": "revolve.runtime.linearization",
    "verify": "revolve.runtime.verification",
    "Report": "revolve.runtime.verification",
    "is_recomputing": "revolve.runtime.replay",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(RUNTIME.get(name, "revolve.schedules")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
