"""The cost of a sparse model: parameters, FLOPs and bytes."""

from tf_rigl._base import backend  # noqa: F401, first: registers all our classes
from tf_rigl.accounting.reporting import plan, report, train_flops
from tf_rigl.accounting.rows import LayerReport, Report

__all__ = ["LayerReport", "Report", "plan", "report", "train_flops"]
