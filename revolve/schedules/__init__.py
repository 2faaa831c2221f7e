"""Chains, actions, the simulator and every schedule generator; no torch here."""

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .binomial import count_forwards, optimal_splits, revolve
from .chain import Chain, Stage, StorageCosts
from .comparison import Comparison, compare
from .discretised import plan_discretised
from .exceptions import BudgetError, ChainError, InfeasibleBudget, RevolveError, ScheduleError, SolverMemoryError
from .frontier import Frontier, solve
from .generated import ROW_KINDS, Rows, count_slots
from .greedy import plan_greedy
from .homogeneous import plan_revolve
from .periodic import plan_every_nth
from .plans import Plan
from .ratios import ratio_for, slots_for
from .segments import plan_balanced, plan_sequential, sequential
from .simulator import Simulation, simulate
from .sublinear import plan_sublinear
from .subsets import plan_single_level
from .units import format_bytes, parse_bytes

__all__ = [
    "ROW_KINDS",
    "Action",
    "Backward",
    "BudgetError",
    "Chain",
    "ChainError",
    "Comparison",
    "Drop",
    "Forward",
    "Frontier",
    "InfeasibleBudget",
    "Load",
    "Loss",
    "Plan",
    "Rebuild",
    "RevolveError",
    "Rows",
    "Save",
    "ScheduleError",
    "Simulation",
    "SolverMemoryError",
    "Stage",
    "StorageCosts",
    "Store",
    "compare",
    "count_forwards",
    "count_slots",
    "format_bytes",
    "optimal_splits",
    "parse_bytes",
    "plan_balanced",
    "plan_discretised",
    "plan_every_nth",
    "plan_greedy",
    "plan_revolve",
    "plan_sequential",
    "plan_single_level",
    "plan_sublinear",
    "ratio_for",
    "revolve",
    "sequential",
    "simulate",
    "slots_for",
    "solve",
]
