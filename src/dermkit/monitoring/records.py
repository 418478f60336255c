"""The files that `dermkit monitor` writes."""

from dermkit.files import JsonFile

MONITOR = JsonFile("monitor.json", 1)
"""What was watched: `checks`, each with its statistics by period, `alarms` with their images, and `performance`."""
MONITOR_PAGE = "monitor.html"
PERIODS_TABLE = "monitor_periods.csv"
ALARM_IMAGES_TABLE = "monitor_alarm_images.csv"
PERFORMANCE_TABLE = "monitor_performance.csv"
