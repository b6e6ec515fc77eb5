"""Give broken and hostile files to everything that reads files: nothing may hang, crash, fill memory or be unclear.

python -m benchmarks.fuzz_files --count 10000
python -m benchmarks.fuzz_files --reader transformer --seed 3 --show 20
python -m benchmarks.fuzz_files --reader transformer --case 123456
"""

import argparse
import sys
from collections import Counter

from benchmarks.fuzzing.judge import FINDINGS, FINE, Verdict, seeds_of
from benchmarks.fuzzing.work import all_readers, try_files


def _row(name: str, results: list[tuple[int, Verdict]]) -> str:
    counts = Counter(verdict.outcome for _, verdict in results)
    findings = ", ".join(f"{counts[kind]} {kind}" for kind in FINDINGS if counts[kind]) or "0"
    peak = max((verdict.memory for _, verdict in results), default=0) >> 20
    return f"| {name} | {len(results)} | {counts['read']} | {counts['refused']} | {findings} | {peak} |"


def _show(name: str, results: list[tuple[int, Verdict]], limit: int) -> None:
    kinds: dict[str, list[tuple[int, Verdict]]] = {}
    for seed, verdict in results:
        if verdict.outcome not in FINE:
            kinds.setdefault(f"{verdict.outcome} {verdict.message[-80:]}", []).append((seed, verdict))
    for alike in sorted(kinds.values(), key=len, reverse=True)[:limit]:
        seed, verdict = alike[0]
        sys.stdout.write(
            f"{len(alike)}x {name} --case {seed} [{verdict.mutation}] {verdict.outcome}: {verdict.message[:400]}\n"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="files in all (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="series of files (default: 0)")
    parser.add_argument("--reader", action="append", help="only readers whose name begins so; may be repeated")
    parser.add_argument("--case", type=int, help="one file of one reader, by its own seed")
    parser.add_argument("--show", type=int, default=5, help="findings shown of a reader (default: 5)")
    args = parser.parse_args(arguments)
    readers = all_readers()
    chosen = [name for name in readers if name.startswith(tuple(args.reader or ("",)))]
    share = -(-args.count // max(len(chosen), 1))
    seeds = {name: [args.case] if args.case is not None else seeds_of(name, share, args.seed) for name in chosen}
    everything: list[tuple[int, Verdict]] = []
    sys.stdout.write("| reader | files | read | refused clearly | findings | peak, MiB |\n|---|---|---|---|---|---|\n")
    for name in chosen:
        results = list(try_files(readers[name], seeds[name]))
        everything += results
        sys.stdout.write(_row(name, results) + "\n")
        _show(name, results, args.show)
        sys.stdout.flush()
    sys.stdout.write(_row("all", everything) + "\n")
    return int(any(verdict.outcome not in FINE for _, verdict in everything))


if __name__ == "__main__":
    sys.exit(main())
