"""Two worked examples of every command, printed at the end of its `--help`; a test gives each to the command line."""

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "import": (
        ("dermkit import folder PHOTOS --out lesions", "a folder of photographs, one sub-folder a class"),
        (
            "dermkit import csv TABLE.csv --images PHOTOS --column image=file --column label=dx --out lesions",
            "any table: which column names the file, and which the class",
        ),
    ),
    "audit": (
        ("dermkit audit lesions --clean", "look for leaks and duplicates, and write a manifest without them"),
        ("dermkit audit lesions --against others", "is an external test set really external?"),
    ),
    "split": (
        ("dermkit split lesions --test 0.2", "a random split by patient and lesion"),
        ("dermkit split lesions --scheme kfold --folds 5 --name five", "five folds, under a name of their own"),
        (
            "dermkit split lesions --scheme given --folds 5",
            "five folds of the training images beside the test images",
        ),
    ),
    "train": (
        ("dermkit train quick lesions", "a first model of your own images"),
        ("dermkit train auto lesions --time 30m", "the best model that half an hour allows, chosen by itself"),
        (
            "dermkit train strong lesions --backbone resnet50 --epochs 3,12 --set optim.batch_size=16",
            "another net, 3 epochs for its head and 12 for all of it; the changed recipe is recorded",
        ),
        (
            "dermkit train quick lesions --classifier logistic --smote",
            "logistic regression on features of the frozen net, with new ones of rare classes",
        ),
        (
            "dermkit train quick lesions --metadata age,sex,site",
            "a net that takes these beside the image; unknown values stay unknown",
        ),
    ),
    "plan": (
        ("dermkit plan lesions --time 30m", "what would be trained in half an hour on this machine, and why"),
        (
            "dermkit plan lesions --time 2h --weights NET.safetensors --json",
            "the same for a net of yours, as JSON for a program",
        ),
    ),
    "tune": (
        (
            "dermkit tune s2-mobilenetv2-grid lesions",
            "try nine learning rates and dropouts, train the best in full",
        ),
        (
            "dermkit tune quick lesions --trials 30 --time 30m",
            "30 trials of the recipe's own search space; the same command in another window shares them",
        ),
        (
            "dermkit tune quick lesions --space SPACE.json --study rates --no-final",
            "the fields and values of a file",
        ),
    ),
    "find-lr": (
        (
            "dermkit find-lr strong lesions",
            "a sweep of the first phase's learning rates: a suggestion and a chart",
        ),
        (
            "dermkit find-lr strong lesions --phase 1 --set optim.batch_size=64",
            "of the second phase, with larger batches",
        ),
    ),
    "ladder": (
        ("dermkit ladder frozen-linear lesions --out ladder", "how much a split by image flatters this recipe"),
        (
            "dermkit ladder quick lesions --repeats 5 --weights NET.safetensors --out ladder",
            "five splits and trainings of each rung, with a net of yours",
        ),
    ),
    "evaluate": (
        (
            "dermkit evaluate runs/quick/RUN --target sensitivity=.95",
            "a run again, with an operating point of yours",
        ),
        ("dermkit evaluate --predictions THEIRS.csv --on lesions --out theirs", "the predictions of another tool"),
    ),
    "report": (
        ("dermkit report runs/quick/RUN", "write the report again"),
        ("dermkit report runs/quick/RUN-versions", "the page of several repeats or folds"),
    ),
    "compare": (
        ("dermkit compare runs/quick/RUN runs/strong/RUN", "two runs, image by image"),
        (
            'dermkit compare runs/quick/RUN --published "theirs: accuracy=.91,n=400"',
            "a run with a published figure",
        ),
    ),
    "ensemble": (
        ("dermkit ensemble runs/quick/RUN runs/strong/RUN --out both", "two recipes of one split, weighted"),
        (
            "dermkit ensemble runs/quick/RUN-versions runs/strong/RUN-versions --out both --weights equal",
            "the nets of all folds of two recipes, equally",
        ),
    ),
    "predict": (
        ("dermkit predict runs/quick/RUN NEW_PHOTOS --out predictions", "new images, with decisions"),
        (
            "dermkit predict runs/quick/RUN 'NEW/*.jpg' --target sensitivity=.95 --coverage .8 --out predictions",
            "another operating point, and the least certain fifth referred to a person",
        ),
    ),
    "export": (
        (
            "dermkit export runs/RUN --to onnx --out exported",
            "one file a net, which ONNX Runtime and many others load",
        ),
        (
            "dermkit export MODEL --to openvino --out exported --images photos",
            "for Intel processors; the numbers are compared on these images",
        ),
    ),
    "explain": (
        ("dermkit explain runs/quick/RUN NEW_PHOTOS --out maps", "where evidence for the predicted classes lies"),
        (
            "dermkit explain runs/quick/RUN a.jpg --class melanoma --against nevus --masks MASKS",
            "what speaks for melanoma and not for a nevus, and how much of it lies in the lesion",
        ),
    ),
    "counterfactuals": (
        (
            "dermkit counterfactuals runs/quick/RUN",
            "what moves the answers to a run's test images, though no lesion changed",
        ),
        (
            "dermkit counterfactuals runs/quick/RUN --on others --artefact ink --artefact ruler --images all",
            "two artefacts alone, on every image of another data set",
        ),
    ),
    "serve": (
        ("dermkit serve runs/quick/RUN/model", "on this machine alone: http://127.0.0.1:8000/v1/model"),
        (
            "dermkit serve MODEL --host 0.0.0.0 --allow-host lesions.example.org --keys keys.json",
            "on a network, under one name, for those who have a key",
        ),
        (
            "dermkit serve MODEL --log log.sqlite",
            "a row for each answer, before it is given (docs/prediction-log.md)",
        ),
    ),
    "keys make": (
        (
            "dermkit keys make keys.json --name 'clinic A'",
            "a key for predictions and heat maps; it is printed once",
        ),
        (
            "dermkit keys make keys.json --name monitor --scope metrics --days 365",
            "for Prometheus alone, for a year",
        ),
    ),
    "keys list": (
        ("dermkit keys list keys.json", "id, name, scopes and end of each key"),
        ("dermkit serve MODEL --keys keys.json", "the server that asks for them"),
    ),
    "keys rotate": (
        ("dermkit keys rotate keys.json 1a2b3c4d", "a new key; the old one is taken for 7 more days"),
        ("dermkit keys rotate keys.json 1a2b3c4d --overlap 1 --days 90", "one day for both, 90 for the new one"),
    ),
    "keys revoke": (
        ("dermkit keys revoke keys.json 1a2b3c4d", "no server takes it a second later"),
        ("dermkit keys list keys.json", "see that it is revoked"),
    ),
    "monitor": (
        (
            "dermkit monitor log.sqlite --model runs/quick/RUN/model --reference-until 2027-01-01 --out monitoring",
            "what moved since the first weeks of the log",
        ),
        (
            "dermkit monitor log.sqlite --model MODEL --out monitoring --prometheus dermkit.prom --fail-on-alarm",
            "every night: figures for Prometheus, and exit code 8 where there is an alarm",
        ),
    ),
    "update": (
        (
            "dermkit update runs/quick/RUN newlesions --registry registry",
            "the first update: the run becomes v1, and its challenger serves if it is not worse",
        ),
        (
            "dermkit update registry morelesions --registry registry --margin 0.03 --fail-on-refusal",
            "the next one, against the version that serves; exit code 8 where it is refused",
        ),
    ),
    "registry list": (
        ("dermkit registry list registry", "which versions there are, and which one serves"),
        ("dermkit registry list registry > versions.txt", "the same in a file"),
    ),
    "registry show": (
        ("dermkit registry show registry v2", "why v2 was promoted or refused"),
        ("dermkit registry show registry v1", "when v1 was registered, and when it served again"),
    ),
    "registry rollback": (
        ("dermkit registry rollback registry v1", "let v1 serve again"),
        (
            'dermkit registry rollback registry v1 --reason "worse on the new dermatoscope"',
            "the same, with the reason in the record",
        ),
    ),
    "verify-log": (
        ("dermkit verify-log log.sqlite", "is the log as it was written?"),
        (
            "dermkit verify-log postgresql://dermkit@db.example/log --heads heads.txt",
            "also against the heads that earlier checks noted, in a file on another machine",
        ),
    ),
    "log outcomes": (
        ("dermkit log outcomes log.sqlite OUTCOMES.csv", "diagnoses that came back, by prediction id or pixels"),
        (
            "dermkit log outcomes postgresql://dermkit@db.example/log OUTCOMES.csv",
            "the same to a server's log; the file may be given again when it has grown",
        ),
    ),
    "log export": (
        ("dermkit log export log.sqlite --out log.csv", "every row, with the outcomes that are known by now"),
        ("dermkit log export log.sqlite --out may.csv --since 2026-05-01 --until 2026-06-01", "one month"),
    ),
    "log delete": (
        (
            "dermkit log delete log.sqlite --keep-days 365 --reason 'retention rule of the study'",
            "what is older than a year",
        ),
        (
            "dermkit log delete log.sqlite --keep-days 30 --under-six-months --reason 'consent withdrawn'",
            "what is older than 30 days, where that is allowed",
        ),
    ),
    "demo": (
        ("dermkit demo", "all steps on synthetic images, into the folder demo"),
        ("dermkit demo --out trial", "the same into another folder"),
    ),
    "recipes list": (
        ("dermkit recipes list", "all recipes, by what they are for"),
        ("dermkit train scratch lesions", "train one of them; a grid is trained by `dermkit tune`"),
    ),
    "recipes show": (
        ("dermkit recipes show quick", "every field of a recipe"),
        ("dermkit recipes show s2-finetuned > mine.json", "a file to edit: dermkit train mine.json lesions"),
    ),
    "recipes presets": (
        ("dermkit recipes presets", "the augmentations that have a name"),
        ("dermkit train quick lesions --set augment=dermoscopy", "train with one of them"),
    ),
    "recipes explain": (
        ("dermkit recipes explain optim.batch_size", "one field; batch_size is enough"),
        ("dermkit recipes explain augment", "a group of fields"),
    ),
    "recipes backbones": (
        ("dermkit recipes backbones", "the known nets, with size and cost"),
        ("dermkit recipes backbones convnext", "all nets of timm whose name holds this"),
    ),
}


def examples_text(command: str) -> str:
    """Return the examples of a command as the end of its help; empty lines keep typer from joining its lines."""
    examples = [f"{line}\n\n    {purpose}" for line, purpose in EXAMPLES[command]]
    return "\n\n".join(["Examples:", *examples])
