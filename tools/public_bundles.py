"""Check public example bundles, in which `churn bundle check` should find nothing.

`python -m tools.public_bundles FOLDER` checks every bundle below a folder without the rules of this project
and prints its name, how many findings it has and how many notes. It fails where a bundle has more than the
mistakes that are known, and says no more: what is wrong with the bundle of somebody else is not for this log.
"""

import sys
from collections import Counter
from pathlib import Path

from churn_lib.bundle.lint.check import check

# mistakes that the Databricks CLI reports as well
KNOWN = {
    "knowledge_base/databricks_app": 1,  # valueFrom for value_from: skipped, with a warning
    "knowledge_base/save_job_result_to_volume": 2,  # interval and unit beside periodic: skipped
    "knowledge_base/scalable_mono_repo_de": 1,  # {{ }} without quotes: the file is not read
}


def bundles(folder: Path) -> list[Path]:
    """The folders with a bundle, without templates of bundles."""
    found = sorted(path.parent for path in folder.rglob("databricks.yml"))
    return [root for root in found if "{{" not in str(root.relative_to(folder))]


def main(folder: Path) -> int:
    """Check all; how many have findings that are not known."""
    found = bundles(folder)
    wrong = 0
    for root in found:
        name = root.relative_to(folder).as_posix()
        kinds = Counter(finding.kind for finding in check(root, policies=False))
        alarm = kinds["error"] > KNOWN.get(name, 0)
        wrong += alarm
        print(f"{name}: {kinds['error']} findings, {kinds['note']} notes{' <--' * alarm}")
    print(f"{len(found)} bundles, {wrong} with a false alarm or a mistake that is not known")
    return wrong if found else 1


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
