"""Reports of experiments on a cluster: tables, plots and CSV files from the master's records."""

from cluster.report.collecting import experiment_numbers
from cluster.report.folder import write_report

__all__ = ["experiment_numbers", "write_report"]
