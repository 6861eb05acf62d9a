"""Memory kept between steps: counted as the page faults of a process of its own."""

import subprocess
import sys

FREES_AND_TAKES_AGAIN = """
import resource, sys, torch
from titan_recipes.trainer.allocator import keep_pages
if sys.argv[1] == "keep":
    keep_pages(torch.device("cpu"))
def step():
    return [torch.ones(1 << 20) for _ in range(20)]  # of 4 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> int:
    command = [sys.executable, "-c", FREES_AND_TAKES_AGAIN, word]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_keep_pages_when_a_step_takes_what_the_last_one_freed_faults_fewer_pages() -> None:
    assert page_faults("keep") < 0.5 * page_faults("as it is")
