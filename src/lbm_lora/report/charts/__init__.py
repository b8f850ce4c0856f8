"""The plots of the HTML report, as values of Plotly."""

from lbm_lora.report.charts.axes import Figure
from lbm_lora.report.charts.outputs import output_figures
from lbm_lora.report.charts.weights import weight_figures

__all__ = ["Figure", "output_figures", "weight_figures"]
