"""What a report says of foreign images: whether the model can tell them, and how often it is wrong on test images."""

from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import OUT_OF_DISTRIBUTION


def outlier_text(run: RunFolder) -> str:
    """Return a sentence; "" for a run of an older version."""
    if not OUT_OF_DISTRIBUTION.exists(run.path):
        return ""
    body = OUT_OF_DISTRIBUTION.read(run.path)
    if body["reason"]:
        return f"Not applicable: {body['reason']}."
    text = (
        f"The model marks images outside its training distribution ({body['method']}). Its threshold, set on "
        f"{body['n_validation_groups']:,} validation lesions, allows {body['max_false_alarm_rate']:.0%} false alarms"
    )
    test = body["splits"].get("test")
    if test is None:
        return f"{text}; no test image was scored."
    rate = test["false_alarm_rate"]
    interval = "" if rate["ci95"] is None else " (95 % interval {:.1%} to {:.1%})".format(*rate["ci95"])
    value = "not defined" if rate["value"] is None else f"{rate['value']:.1%}"
    return f"{text}; on the test images it marked {test['n_outside']} of {test['n']:,}: {value}{interval}."
