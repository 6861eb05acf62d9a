# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "95a6b635c5aaf277cf475c99625748d02a13a36fb9d1b576ae5b5feb54fadf94"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s local_cwd component.py:train --name my-run
#   torchx run -s local_cwd component.py:train --help      # every argument
#
# The job is read-only here: change the recipe, or use --set, and render it again. To look at it:
#   python -c "import titan_recipes.config.job as j, component as c; print(j.to_toml(j.decode(c.JOB)))"

import os
import sys
import time
from typing import Dict, List, Optional

import torchx.specs as specs

JOB = (
    'eNq1WEuP4zYSvvNXCLrsJWn40XZ3B0iAZIHdyy52LsEeGgZBSSWbMCVqSKqnnV-_X5F6-ZEBctgGZmwWi2RV8auvin53'
    'VOqODqJVDWU_Z7kxqlFbWVHRH3PxQc5r2_LE6mn9tMqF75tGuQtLfs322b-zTjksDeSyf_HSbJtBP5wo87Z3JWW2zr5c'
    'wsm2f_OZ8pe21PYnzDuirNFtH8jzApUZ1QXb5aKiWvUmyM6oeG7Z9ZtcOPraawddSH75GbbkIqgjD99Fhr_B7vyHNErm'
    'T4PG4vsBW3dwVwWqeJtciPfGVmQOolaNNpfZfVihGww3u71opVEXhAFDHpxIVfx9zYPzx3LMX2VaiFFdt8PgZf8qPmyp'
    'Cun1Hxzkzer5VbTWNZK6uJZ-XO2Esx1JBC4oiHYr_ntaiaBJUlNQVek2-lsr40mcaqm8p-Blp8IpuRPsmVqc4Bay0ra4'
    'w5Dsfz-Izuk2SFVDItPccL9pW_HOYQcaEJdomTh2Pc6ANotGCe-t2ssVGv7TUuZUe07Xr33WqPKkW_op08Fn__zyu890'
    'zcBwlCn-115-yAiHxvm_f_md74M-OyrDIbmSzvUEO6v4NZ3MUelInWWDe3UXedTFIB0QN9xtis9hDgtPTIOnePU5B9JR'
    'Z8dFlQrqMGw0hCzQZ5Bnik7yd3h96uva8EHB9SR8cAQAtccpjCVcJ9y-S9u2fSM7Z0uMflxzjJ2ttcGCg6BWFYbkJJm2'
    '8OoDaHAKZsjamiqZn_TGiVyM4xr5wZezGiVOqjLoj3Rjk-ybck3fQbYdDx5i6FvV-ZMN18ffTC7suJmJqUTB6RLxNvY4'
    '2rMbjwm4TesKq1w1Rq3SPk6V1lgglnF573-xODMUeZLW0FfGSEbbnBHDSd9UWxULPNsu6IYvfKa4XyvV_DcXxiXYrLai'
    'QNKt4-gtft-k7zB_ys9X8Y308RTAjKW6xPm10E1nqKE2qDCwZN17qnJByhmEJ1AndSsLVZ6_JddHswyADYxUvWHL0r1E'
    'fR_5AaANykwCoCYeC5dxUBQA7kkULl30qrQe2ZYLAFFi9xr3b91gp3gHYHQbEccIR2LwEh8qoxHVQTTRxkDTCBFYy8D8'
    'UJ5G7noVR2OLe6mnr9IQx2C9eRWN-pRMcDzkxBwde16N9wRalxZZZNUclmr0hcVhu2FnPgm5z0WKeUrGYvNdDYeYlteb'
    'HMsJjysexOKwuIsxNk8cBzYoggU5-826c2JOZhwwJfwAe87itEOHiKeEmEWOauL4TNeQEh_mG0NG-yZdhBwlTEJGc22C'
    'eUcujpy41yr-BAzN09ix9lWHlWkikTqSY4BaPlRSFIaYffNGyxOGLDTW-0nhNqciHuTNLgv3O3jU0sP9wbI989PXgc0j'
    '67JmGOrR3eJaOx-AfHWEVQSrpvK7fqBt1F9S5slUVXhJCuK93piZHMT1P9a_5d_RkaX_SCx_r9Po0tmrPHl0Gtc8F-ax'
    'RVFGMzTyJKpfrECPons3x-hFZqKGl4k0uScJSpv8XteBYgKTPJqziBeIj4oLNPjrxqbFmcPUdzB1u7i0TRM5kNoq0Q44'
    'GhjlqoEolufOgvzHWjj6PWCvBuNOaSlndT_qzQViMZkL_E_uQzFM9yuMdNBqiM_cHV2JEzRtGxvBuPXVNJL8VE-gv5-S'
    'X3uFEvYHzXyWwBkr6XLv28nrnRE9i-jdc2HKwia1YfmQuAjimVBlDK4S-51jbY9GMecmgNNnafqKmwTbRINTnX2fuo8x'
    '5bDPHMO5mUF3A5x4As8-mI6HXXmG1ot7j1gT5fKCR9tby4XKk6HYo6BVkVymUwWFp5ygFuUQctBZSaA4YKjrGa0N02CH'
    'pqi4RFaZXwCNpSdnoeSeAGOKHf9Yh203WTe0LkVfHWMVXD3txIf2vTK4O3k1yxCmYJes7gEq2NMemUHCBNaKH0CovCD2'
    '5PEV_94WHHYG_dgC8UOkIUdoErgnr7hNHV4yzNLRr0U26RYFDzWGs2mE4BMzjHJPETuv8z1zuUiy2EClbF-6N4Z5UKou'
    '6Jl0CbJTJvVdvMW0IL0d5dhX5QJdZqxBw73g4KY3KUyj77cmNp_AxWfdvfJjaS1LzgpU15Z542R1KuXoLINt89sD07qy'
    'L5BLd4eniAEPcCjGbHH2ETjpAOemmUI02_xYj-18dHx-tZKp7hDJQaLtJJw-vF9YY7tCX8e9xoO5dZoD1ou-nt-J-PuT'
    'l0Ak1fEZcKWi43uCav3Jetwky3xKvQmT4j09s4NFB8rl4hCbNiA8oDhHc8UxGnTtwA1k-VnDdTdGig9Ad2jza_HkbjN4'
    'im2GdkfqKnZXSW9wexV72FFjqpyeGi0TB04li_0Ayesqks1tCblrdeWs-1e73uv-dugn93Nr-3xlyf-_lYycgpcqUYrg'
    'zEBBl3NHvZTy86-9pmpw5kCxy85h-Xxy-qgRWG53GiXn3wu4dTwCLBy5t53aF_vtrtwpVW9eXsr6-WVXvr3tN7uX59dq'
    'tVHrrdru6-KtWhe7l72iXbGrqdg916qq355zUfRtZQYSWfzws0bbYnofaHhIc2vkdEVTviG-KCAVXlDWmWrGSmyLh4Z6'
    'FMQuObVNXfwI6aNLH5Q-Hr9ukAmV5gtTZdlHTuPaNt79-ur3ilR316vN84N3XXqzTQJIpkZy-UiKvxjwWyf-7LTeb1_W'
    'GwGq6tIZ8ThOyP36bfcKffFO7cdB_A_ixczn'
)
RECIPE = 'llama3_debug'
ENV = {
}


def train(
    outputs: str = 'outputs',
    name: str = '',
    image: str = '',
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    cpu: int = -1,
    gpu: int = 0,
    memory_mb: int = -1,
    max_retries: int = 0,
) -> specs.AppDef:
    """Trains one titan-recipes job.

    Args:
        outputs: folder that the run directory is made in, as the job sees it
        name: name of the run and of its directory; default: the recipe's name and the time
        image: container image; default: none, the Python that launches
        env: more environment variables, KEY=VALUE,KEY=VALUE
        mounts: mounts of the container, as in torchx: type=bind,src=/host,dst=/container
        cpu: cores of each node; -1 = not asked for
        gpu: GPUs of each node
        memory_mb: memory of each node; -1 = not asked for
        max_retries: how often the scheduler restarts all nodes
    """
    name = name or f"{RECIPE}-{time.strftime('%Y%m%d-%H%M%S')}"
    args = [
        "-P",
        "-m",
        "titan_recipes.launch.node",
        "--job",
        JOB,
        "--run-dir",
        os.path.join(outputs, name).replace("$", "$$"),  # $ starts a macro of torchx
        "--nodes",
        "1",
        "--node-rank",
        specs.macros.replica_id,
        "--master-addr-env",
        specs.macros.rank0_env,
        "--run-id",
        specs.macros.app_id,
    ]
    environment = {**ENV, **(env or {})}
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="trainer",
                image=image,
                entrypoint="python" if image else sys.executable,
                args=args,
                env={key: value.replace("$", "$$") for key, value in environment.items()},
                num_replicas=1,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
