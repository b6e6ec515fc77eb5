"""Try every value of every argument of all pipelines and conditions, and count the outcomes.

    python -m benchmarks.wrong_inputs                       # everything, on all cores
    python -m benchmarks.wrong_inputs --subject FillMask    # one class
    python -m benchmarks.wrong_inputs --update              # write the table of what is accepted, to be reviewed
    python -m benchmarks.wrong_inputs --subject FillMask --update  # write its entry alone

Exits with 1 where something is neither accepted as listed nor refused by name before the first step.
"""

import argparse
import multiprocessing
import resource
import sys
from collections import Counter
from collections.abc import Sequence

from benchmarks.support.wrong_inputs.table import is_own, read_accepted, write_accepted
from benchmarks.support.wrong_inputs.trials import Result, Trial, all_trials, attempt


BYTES = 32 * 2**30


def run(trials: Sequence[Trial], processes: int) -> list[Result]:
    """Run trials in several processes of limited memory.

    Args:
        trials (`Sequence[Trial]`): The trials.
        processes (`int`): How many processes.

    Returns:
        `list[Result]`: in the order of the trials.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _limit_memory) as pool:
        return pool.map(attempt, trials, chunksize=200)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials, print a table of outcomes and what is wrong; return 1 if something is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subject", action="append", help="only this class; may be given several times")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--update", action="store_true", help="write the table of accepted values")
    options = parser.parse_args(arguments)
    trials = [trial for trial in all_trials() if not options.subject or trial.subject in options.subject]
    results = run(trials, options.processes)
    wrong = [result for result in results if result.outcome not in ("accepted", "refused")]
    accepted = {result.trial for result in results if result.outcome == "accepted"}
    if options.update:
        write_accepted(trials, [trial for trial in trials if trial in accepted])
    else:
        listed = read_accepted() & set(trials)
        covered = [result for result in results if is_own(result.trial)]
        wrong += [result for result in covered if (result.outcome == "accepted") != (result.trial in listed)]
    lines = [f"{result.trial}: {result.outcome}, {result.message}" for result in wrong]
    counts = Counter(result.outcome for result in results)
    lines.append(
        f"{len(results)} values of {len({(t.subject, t.argument) for t in trials})} arguments: {dict(counts)}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
