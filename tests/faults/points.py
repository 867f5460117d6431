"""Kills a step at its writes, one after the other, and looks at what running it again makes of it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.shop import Shop, Step, differences


@dataclass
class Survived:
    """What became of a step."""

    step: str
    writes: int  # of the undisturbed run
    killed: int = 0  # runs
    wrong: dict[int, list[str]] = field(default_factory=dict)  # write to what was otherwise


def spread(writes: int, most: int | None) -> list[int]:
    """The writes at which a step is killed: all, or so many, in the middle of as many equal parts."""
    if most is None or writes <= most:
        return list(range(1, writes + 1))
    return [round((number + 0.5) * writes / most) for number in range(most)]


def survive(shop: Shop, step: Step, most: int | None = None) -> Survived:
    """Do a step, then kill it at its writes in copies of the store; the shop goes on as if nothing had been."""
    before, after = shop.folder / "before", shop.folder / "after"
    keep(shop, before)
    succeeded, writes, detail = shop.take(step)
    assert succeeded, f"{step.name}: {detail}"
    found = Survived(step.name, writes)
    numbers = spread(writes, most)
    if not numbers:
        shop.stop_endpoint()  # as after the kills of another step
        shutil.rmtree(before)
        return found
    expected = shop.state()
    keep(shop, after)
    for number in numbers:
        put_back(shop, before)
        _, _, detail = shop.take(step, number)
        if "killed by SIGKILL" not in detail:  # it wrote less this time, and has ended
            continue
        found.killed += 1
        if wrong := [*after_another_run(shop, step, expected)]:
            found.wrong[number] = wrong
    put_back(shop, after)
    for folder in (before, after):
        shutil.rmtree(folder)
    return found


def keep(shop: Shop, folder: Path) -> None:
    """Copy the store."""
    shutil.copytree(shop.store, folder, symlinks=True)


def put_back(shop: Shop, kept: Path) -> None:
    """The store as it was, and no server from it."""
    shop.stop_endpoint()
    shutil.rmtree(shop.store)
    shutil.copytree(kept, shop.store, symlinks=True)


def after_another_run(shop: Shop, step: Step, expected: dict[str, Any]) -> Iterator[str]:
    """Run the step again; what is otherwise then."""
    succeeded, _, detail = shop.take(step)
    if not succeeded:
        yield f"run again, it fails: {detail.strip()[-300:]}"
    yield from differences(expected, shop.state())
