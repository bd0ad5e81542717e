"""How many short programs a second the sandbox runs: python benchmarks/sandbox.py [--programs 1000] [--workers 2]

A program reads its input and prints one line; each runs alone in a fresh sandbox, as for the reward `code_stdin`. The
wall-clock depends on what else the machine does; CPU time per program, of caller and wardens together, much less.
"""

import argparse
import json
import resource
import time

from outscore.rewards.sandbox import Program, Sandbox


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(num_programs: int, workers: int) -> dict[str, float]:
    """Run the programs and say what they cost."""
    programs = [Program(source="print(sum(map(int, input().split())))", stdin=f"{n} 1\n") for n in range(num_programs)]
    sandbox = Sandbox(workers=workers)
    sandbox.run(programs[: 2 * workers])
    before, begin = cpu_seconds(), time.perf_counter()
    ran = sandbox.run(programs)
    seconds = time.perf_counter() - begin
    sandbox.close()  # the wardens' own time counts once they have ended, their start included
    used = cpu_seconds() - before
    wrong = sum(each.stdout != f"{n + 1}\n" for n, each in enumerate(ran))
    return {
        "programs": num_programs,
        "workers": workers,
        "wrong": wrong,
        "seconds": round(seconds, 2),
        "programs_per_second": round(num_programs / seconds, 1),
        "cpu_ms_per_program": round(1000 * used / num_programs, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.programs, asked.workers)))
