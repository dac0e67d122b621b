"""The runs of several folders as one set: those of one setting together, each setting under a name of its own.

Between `runs`, which reads a folder, and all that sums up, draws and shows, which then treat the set like a comparison
that was planned. Nothing is assumed of runs that were not planned together: they are of one setting where all that
they wrote down agrees but the seed, and of a loop of the user's own only the mining is known, so each stands alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infer2train.reporting.runs import RunFolder, RunSet, read
from infer2train.reporting.tables import setting

BASELINE = "baseline"
NOT_COMPARED = ("seed", "data_cache")
"""Of these, two runs of one setting may have different values."""
MOST_IN_A_NAME = 2
"""Settings that the name of a group tells apart; where more differ, it has the name of the folder."""


@dataclass(frozen=True)
class Group:
    """Runs of one setting, one for each seed.

    Args:
        runs: in the order given.
        given: the folders that they were given in.
    """

    runs: list[RunFolder]
    given: list[Path]

    @property
    def config(self) -> dict[str, Any]:
        """The settings of its first run."""
        return self.runs[0].config

    @property
    def method(self) -> str:
        """The method's own name, also where a comparison called it otherwise."""
        return str(self.config.get("method") or self.runs[0].method)

    def takes(self, run: RunFolder) -> bool:
        """Whether a run is of this setting, with a seed that is not there yet."""
        ours, theirs = _compared(self.config), _compared(run.config)
        return ours == theirs and "regime" in ours and all(run.seed != other.seed for other in self.runs)


def gather(
    folders: Sequence[Path], baseline: Path | None = None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> RunSet:
    """The set of all runs in these folders; of one folder, what `read` makes of it.

    Args:
        folders: of runs and of comparisons; what is named twice counts once.
        baseline: one of them: the others are compared with the setting of its first run. Default: with the first
            setting of the method baseline, else with the first of all.
        defaults: of the settings of `train`; a run of an earlier release has them where it did not write them down.

    Raises:
        ValueError: a folder holds no run, or the baseline is none of them.
    """
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    if len(distinct) == 1 and baseline is None:
        return read(distinct[0])
    if baseline is not None and (len(distinct) == 1 or baseline.resolve() not in map(Path.resolve, distinct)):
        raise ValueError(
            f"a baseline is one of several folders that are compared: got {baseline} for {len(distinct)} folder(s); "
            "name its folder among them"
        )
    groups = _groups(distinct, defaults)
    if not groups:
        raise ValueError(f"a comparison needs a run: got {len(distinct)} folders in which none has begun; train one")
    names = dict(zip(_names(groups), groups, strict=True))
    against = next((name for name, group in names.items() if _is_against(group, baseline)), next(iter(names)))
    return RunSet(
        folders=tuple(distinct),
        methods=tuple(sorted(names, key=lambda name: name != against)),
        seeds=tuple(sorted({run.seed for group in groups for run in group.runs})),
        baseline=against,
        runs={(name, run.seed): run for name, group in names.items() for run in group.runs},
    )


def differing(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ; what a loop of the user's own did not write down is not known to differ."""
    known = list(configs)
    names = dict.fromkeys(name for config in known for name in config if name not in NOT_COMPARED)
    return [
        name
        for name in names
        if len({repr(config.get(name)) for config in known if name in config or "regime" in config}) > 1
    ]


def _groups(folders: Sequence[Path], defaults: Mapping[str, Any]) -> list[Group]:
    """Runs of one setting together, in the order given."""
    groups: list[Group] = []
    seen = set[Path]()
    for folder in folders:
        for run in read(folder).runs.values():
            if run.folder.resolve() in seen:
                continue
            seen.add(run.folder.resolve())
            if "regime" in run.config:
                run = replace(run, config={**defaults, **run.config})
            group = next((group for group in groups if group.takes(run)), None)
            if group is None:
                groups.append(group := Group([], []))
            group.runs.append(run)
            group.given.append(folder)
    return groups


def _is_against(group: Group, baseline: Path | None) -> bool:
    """Whether the others are compared with this group."""
    if baseline is None:
        return group.method == BASELINE
    return baseline.resolve() in {folder.resolve() for folder in group.given}


def _names(groups: Sequence[Group]) -> list[str]:
    """A name for each group: its method, and what tells it from others of that method."""
    names: list[str] = []
    for group in groups:
        name = _name(group, [other for other in groups if other.method == group.method])
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def _name(group: Group, rivals: Sequence[Group]) -> str:
    """The method, with the settings in which it differs from its rivals or the folder's name."""
    if len(rivals) == 1:
        return group.method
    apart = differing(rival.config for rival in rivals)
    told = [tuple(repr(rival.config.get(name)) for name in apart) for rival in rivals]
    if len(apart) <= MOST_IN_A_NAME and len(set(told)) == len(told):
        return ", ".join([group.method, *(f"{name} {setting(group.config.get(name))}" for name in apart)])
    folder = group.given[0].resolve().name
    return f"{group.method}, {re.sub(r'[-_]?(seed)?[-_]?[0-9]+$', '', folder) if len(group.runs) > 1 else folder}"


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that runs of one setting need not have in common."""
    return {name: value for name, value in config.items() if name not in NOT_COMPARED}
