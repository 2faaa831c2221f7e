"""Chains, actions, the simulator and every schedule generator; no torch here."""

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .binomial import count_forwards, revolve
from .chain import Chain, Stage, StorageCosts
from .exceptions import BudgetError, ChainError, InfeasibleBudget, RevolveError, ScheduleError
from .frontier import Frontier, solve
from .plans import Plan
from .segments import sequential
from .simulator import Simulation, simulate
from .units import format_bytes, parse_bytes

__all__ = [
    "Action",
    "Backward",
    "BudgetError",
    "Chain",
    "ChainError",
    "Drop",
    "Forward",
    "Frontier",
    "InfeasibleBudget",
    "Load",
    "Loss",
    "Plan",
    "Rebuild",
    "RevolveError",
    "Save",
    "ScheduleError",
    "Simulation",
    "Stage",
    "StorageCosts",
    "Store",
    "count_forwards",
    "format_bytes",
    "parse_bytes",
    "revolve",
    "sequential",
    "simulate",
    "solve",
]
