# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s titan_slurm component.py:train           # submitted to SLURM
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
    'eNq1WEtv5LgRvutXNHTJZbfRD9tjL7ABNgGSS4LMZZGDYRCURHUTTYoakrLd8-vzVZF69GMH2EMMzLRYpMiqYtVXX-nV'
    'q1r36q3opFWrX1elMdLKvWhUNRzK4l35oF1HE5v1dr0pizBYK_2ZJL-tnlb_XvXS49Wo_Opf9Opqv8L6eFSr4AZfq5Vr'
    'V1_P8ei6v4SVDOeu1u4XzHulVlZ3Q1SBXpArI_vo-rJoVCsHE0VvJJ9b98OuLLz6NmiPtZD89VfoUhZRHmj4Wqzwl_Uu'
    'f0qjpP40sA7Pb9i6h7kyqoa2KYvi1bpGmbeilVab82w-tNAWw93jU9EJI89wA4Y0OCrZ0POWBqf35ZgeRXoRo7bt8uDL'
    '03Px7mpZiaC_k5N3m4fnonOeJktvAz2WLBCq583Uz5vHJBg6HYVr26AiJlppgip6F6Kg2TCJvp1E3jCNZYyqi7g6UWk5'
    'L5N11O8y5isN2gy40VoaJZStVNPo7hDu7MFLIN-sN0upa6OoZZ8n3BD7IV5LF8t1d7q3eSXrk-r4SkLTSyhkNCkiPnTX'
    'uA_apzgYV0kjFOLxzALveiUQZVFi-Lihv_VSKgwcbrIOUd-179gKGeDXIHoZjykkooMuuCW_kNWuw7kxxcDrW9F73UUh'
    'W0hEmss5krYtXil0kVGILb7M4tAPOAOrSTRKaG_ZnS8y6j-dWnnZnVIK6bCysj7qTv2y0jGs_vn197DSLSWXVytJ_7rz'
    'TyuFQ3n-719_p5hWn72q41syJZ0bFPRs-DGdTF7plTwJi9zwZ3HQVZbmrM35kfzzNruFJqbBmtOnJEd61bvxpUZG-ZY3'
    'yi6L6jOKk2Ij6RlOPcooorLwVVQXmefqwSI0hJXhNDk1HIe25RiMfsAweoWc7Q7TAk_JJykFKcGKGo5TyD-flOoGK3rv'
    'aox-3tINeddqg_ffCtXJCvE_SeYj5TuCyUsYIVpnmmR8WjdOlMU4boFQdLWbUeIFJ1u670n2Ib0dKDf248H5BkIn-3B0'
    '8fL4q8mFHlczDGYqel3jtow7jPo8jscg24LzlZO-GZ3Y6MBTtTMO8U5RfWt_tTgzVmWStlgvjREUq3M-5ZM-ZNdUi2xw'
    'fdSWwmUuMr810v63LIxPQbfZFxVydsujF37epWeoPwHic_Gh9OEYUZtqySiw3hYaAaQoXCZQa4egmrJQ0hu4J6pe6IQx'
    'H8n0pJYdgDzW0ZuDHc8K2AVBE889azlVtnI0DbWIsNg4Oe908G7oc5gXrwbJhshrBkP2pttmLQLjPhIpAsdGAWKRjYEj'
    'oT4LkIJJNGpROwCnKgtEu8DuLaLK-Wx98Yow1B3HMWVdKhJliI3RuKssmqAsl184nsARTon1caxJzyPGXkmD-iaMIs9u'
    'd8-FlZ9jnSFNRzv2m82PXDR5lMRxvyNjPhXwiMgHYadgV_9whYdP68tNjAtB1MehO4mEdcmjLD4p3ymT0MrXx7L4Llie'
    'Qihj3aGe0oQHzBoWkTs6d02OJIs4hgElH86fUjkgGAX8BypmC3Gu07iylKezyKtWkYOne0x4BPuNUUYHm25SjBJCVqNr'
    'Dkx1INZEeHK5JBwR2vM0dmxRSfFmmkiVCjmbM6DMFAvVjkFh3mh5QgYH9tq44DrVOaDE1S4L83tY1Km7-6N0DASb33KJ'
    '4lJCK2Musjcvt9qD9iBHD9BKQauJl23vrDbyTy2myVQq6ZXkxNt1Y2qTE7f_2P6t_MEaUYf3VHxu11hde3eRaPdOo0Lu'
    '4zx2YBqGiVXyL2o619V77r2Zo_BFboOZ1AnMqVRGqU15u9Y7BkJg39FxwEB8kEQ7gIRXSi3OzFM_CKrrl2tn7QX_i6gd'
    'CFKqZnBjfeoditJYo8e6lYMPNHPOSzEvD-O6uXAtJssC_yv_zuTwaYORjlpm_8yc70KcYtN13CLw1hfTyPJjO93K7ZT4'
    'NkiU1u9qRsQUnVzhl3tfT17uDO85eO8WTVMa2kQuy5y5cOJJofoRv8J-J-YcrBShdopw9VmboSHy4iwrnOr_68SKxpzD'
    'PrMP5wAE6UKcBAWkvjPNh11YBkI5NSBiecGj7p2jUheUUcydQKEE0YdU2WEpZahDQYUceFYrYBxiCG0HHGkJB3uQterM'
    'sDL3htapNao0rn2NMFbcC7J_3Vi4s7nXhWskEW5Ousy7qqE5qFRHHot3HQZpcMHiYpbiXEW3xP6AyIPSaG6Ya0xMjFgG'
    'CjzgP7nlAqWvyxJZDDK5SIsRD2wP_6UMmEwnhp4bYcJyNn6RcuixBqpE5TVlLl7HsF0TLEm_5nh7nmODakySMRlMCDGa'
    '1M83k9c0Z9A_Xadmkikk7TCuT98hxMgQywJ8mctWvknc2Enj5i2OmoDADrl7GF1zrbL9RGx9tv0zteJbtKWUCUwN4Gen'
    'E6EAa46uK69VSO_VQ4V8vFEnOTS1vOzSxdnMCJES1k4um624v470vHd8efEmaDoaK24Q-RODNP2R-t_9jppc6SnmUl2d'
    'XiGEfWNMEmDhylGDzs3gSNuY49yZ26Y5pFg1tPOHC_z9QWPEWD52RRdLNLdXqtWf_L0D6otyyvgpyovX9N0nOlBnqlJv'
    'zDaRM7CMQ3oPrk0KXRpwlQTU5VG9Z-fSAaC1rrwUT-babCm2yTRL6CZ9cOB12ewNk-9xxVSxg7JaJOidKiXZgdqiG8a4'
    '68p1w9HFvPbP0vVLYp557NPMyR8uNPn_U1hGKWSpUsmDM6ZFXc-twFJK3XB3WSEA1RnZl4Rl2U16fdBwLNEsK8X88YUo'
    '6wHBQp573rfV02P18iL3u03z5eHl6WH32OCa6-YBf-1j-2XX7Dfb3X5TPz7svmwxautqo16q56r5UpdFNXSNyUi0-BK5'
    'BUyaIUSVQZIomdfNnG_wL-pWg9bPedPMscJ0PBP5UcDsPLG1nn9i-unTj0o_99syZEKj6cJkXQ8Mg_yJLd_99uLjTyr3'
    '283u4U5DmprNSfC8KSYCu-zu-AMKNWn8HXT7tIfPCqBbn87g42jp0_bl8flhQ5-hundySNBRUVREzsbXUbQm26EN5vK3'
    'sPLmM9kGfhlShN58pmISBxjoQBTGvON9gxm8nU4hagt8o6D3Q0dpP7MMbRPTpxvmD9Tc8_PTtJt1eCtM2wF5vFqMKRUM'
    'NZQ3tXhkVhWCePwQmCMcGRWONttCXTTBXI0cP4lwUh8LeHtcJ-SpwIo_dBOPCwf8D91iIAo='
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
