# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h100x8"
#   digest  "fbc9e2ba55f020aa37fba6a70320af67b9567037f3bedee0fe8f9bae83b26a73"
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
    'eNq1WEuP67oN3vtXBF53MnaSmZMUuAXuvUDRRYEuuxgEgmzLiRDZ8kjyPM6iv70fKb_y6EW76CzOiShKfIj8SPrNqVJ3'
    '6pi0slGrX1apMbKRW7Ev0uRDOa9tS9Rsna-zNPF900j3TZS_E99qu85X-99WtbPNypdOhvK8wonfd39e5a_7VaGNoRuC'
    'vajWp0mlatmbIDoj-dpznmVf-zRx6r3XTnmi_eUXCEuTIE-0fEtW-Bu0Sv8UV51TwUndYn3EnViWMqiKTqdJ8tbYSplj'
    'UstGm-_ZJojXDZa77PCatMLIb9iH9XaD1VnJalpcPqb1PqFfIp7MN_ukrttxtdtuX5MPW8pCeP1TRYbNCy63jhhS13j6'
    'mTJBqI4uzNVT9hIJfauDsHXtVcBGLY1XSWd9ELTrJ9L7RQwXxrUMQbUBbhWFljObLIP-kGF4MK9Nj_cqpVFCNYWqKt2e'
    '_IM7mAX0bJ0tqbYOopTdsGH70PXhlrpg1-1lvtwbTdLEp24r-0nMycnYQhqhEFLfTHC2UyKcVZBYvmT0t15ShYFfzSAo'
    '6IdGnGshPZznRSfDOb4-Rxoewy1opW0hN8TXfjsmndNtELIGRcS9IczjtUMArVkZcg-EHpMLjFnGUg1_W0cRQv5x-qRb'
    'GNjIL-HVuzCK7tvnh01i7KeoEeBiOoFUSs76dL4h70AuyPRa-sChOBK8YTfSuWb5XnEhpDFDSLKzXN9SOmCJn2QOZRsS'
    'HEZxACanrofLYDyROMZBGdPxKsn_0aoVM9l6paBxWP2NWZI39dWpMhyjv-NtXsGZFf-M95E2nZIX0ajGum9x0sVA9bZ3'
    'pRrzNT7icX472vjX87qU5Vk9Bx1k-xRhyj9H9z-PDn-ezqz50VIKCqc6S1c08N0TH3hmtHoCWj3tfyORlQzyOKgxREVQ'
    'X0FcFNtNvxE3ZxlEUA38F9QVjtiybxD6eG5_mcP-3Ne1mfzug1NAoPY0MbA9eCkXDW_7RnTOllg95fRMztY6BptqZYGH'
    'nSizDPmBBHESWovamir6KvKNG2kyrim-6MWzkeIEowRD1Uz7lK7pKam3o-DhwXwrO3-24Vr8zeZCj5sdxmIgtS7xuMae'
    'FvoMcoAf3rrCSleNbqu0563SGoskplS9d0CxEBpQqZhag59SwcklGA2SPmVbFYsUt13QDcXNXPl-rWTzzzQxLgZplm05'
    '-3JeHvj3Jv5-SWYs3yefnBmiQhFibFvniUbMKIqQCY_r3qsqTZR0Bg4KqhMa-C3Ly2e0fdTLII8QJVVvSLX4MsxP8jZQ'
    'ClkSADQjCZHDgmE1RDEB-RVJ4btjw0oLfFZpgmAUuH8CHBhJccellMOOsiIWo7TcpeNygaQMylAbZX4qeSO2X1Ff8k1y'
    'g4MEjUMdIxVHA3YE_eMrlV1PBdFYOfukGs0gcthuyI4vBZwhSCDghn5Ocr0tmCV_vWdx8Gh5fcupHOPxJaNFpYr-tHiJ'
    '0S1rcgNpxLGCnP207hJrCcEbaoenMrggD5Uc3o4JMZOcqhV5aXqCmPjQ3xhltG_iG4iRQlBmNKE51Ds5FR1-zeLPiKB5'
    'GzfWvupwMm7EMofcGAItHXowlEpOvvmipYQhCY31fmK4TSnpv9tS3NyyML-DRa16eD-wuid8eh9KB2M3cYahQt8drrVD'
    'Y-TRFUIrBa2m9i1_wG3k_8RMm7GE0ZHoxHu-MS_Jiflfc9SR_8wjSv8RU-aep9Glszc5dM9FBdaFeW3RphhuvYZiYluu'
    'WI_ce7dH4YsERR9QRtCkpjZIbdJ7Xgd8CYTy4Ww5YEA-AQGUA3zdKLWQOWz9QVDdHi5t0zAEqthZwflthSClsgE3lpfO'
    'AvzHYjjWhyH40IjOeSlmdj_yzQVisZkm-Fe5D-4scwIepHjQcvDQDHRX5BidtuVhgi-_2kaen-vpXe63xHsvUcR-qhnT'
    'YnxyMV3efbt5fTP8Z-G_ezyMidjEZi7lVZpcFGoMNS647MK1nTUi2I0Brr5K01fUJNiGtY1l9m3qPsaUwz2zC-f4Q3eD'
    'MPEKOPtgm4VdmYU-b5pQxPJ9R8W9Moq7E9Tz8Sf6FUGlOhZR26WEuKDAPyWBWqkAdAgkTCfwZUNgiC5RFN-MLfP82FiF'
    'fh5Mbo1YVjw4jrXYzkk1NDBFX524DGbrl-RD-x4zwM-p8Ym7FMcq2CW2e0QW9MHk48OiAa8UxKL2At6j3VcofFt2yBh0'
    'ZbdhT2Tbqhjgk1HU8Q4zMUE1m7XIKIwsPRUayqgxCNcEM9KtOXr282NTzYg0bqJixi-tG708MFXf6Jt0GedH7r3oiulA'
    '7NfF2FthXtKGC9HwLBDc9ENfPZp-q2LzheD4qrs9TTc5Bk8KZeVawo6z1bGeo70Mtk1vBcZzZV8gm-6ER4_FoZZ9tpB9'
    'Qph0iOmmmVw06_yYj_R8JD69Ool2FiMHNaeEPa-JNN1ZjmNekI5iKtbF6Qgh5JERRaBbVZZGcB6y-EsF9YLUozzYy-Me'
    'sqPo67HKbLjTejxBMBaP48MVi-Y5RNX6i79oQH2RTik7RXHyFj_sBIu-larMkfs95AQs45jdJidW6NqAKcjHMLMl1Wt2'
    'LglAb2nTa_JkbjNYimuGNknoKn5tYL7B7Iz73pFjqrheNVpE4JwqHdmB2qArBqnjrXZX7bGYGf_LTnm_6Ig32W6fzOPQ'
    'optfavD_bz0ZfTAIKxU9N2NV0OVs-JJK42J7De1A1wGMl43GctricR1ygH-NFPMXF2o1T4o_d6R1UR7UppAvL3W2yaTc'
    '_qgL-Sp_ZFus6tcfxeHlFYsf9bZQlVJZrfb1oZBqvy02YMNcXvRtZQa8uf3EiGIHZw2jNzVTTldzpsHDqDYVJi7rTDW_'
    'GDfSQwse1e1iw827Zce0EP_r4n-q-8OpCFlQaXo0WZY9QyB_QBsC4HV39UUlFutdfthts93DaTBOeiNpu-cUH5vQ6xmL'
    'vzfQqMTfNbNttnnNNxSGxnZRHosmPX8c8t1udzhsMvrU034ck38DcAOOrA=='
)
RECIPE = 'llama3_8b'
ENV = {
}


def train(
    outputs: str = 'outputs',
    name: str = '',
    image: str = '',
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    cpu: int = -1,
    gpu: int = 8,
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
