"""The report of experiments on a cluster: what the master was told, as tables, plots and CSV."""

from cluster.report.collecting import experiment_numbers
from cluster.report.folder import write_report

__all__ = ["experiment_numbers", "write_report"]
