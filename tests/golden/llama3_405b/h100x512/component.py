# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_405b@0.1.0, plan h100x512"
#   digest  "1439117ca9e1979c4f9ffeecf355d816a299e678dde4446dabee228285cb05d9"
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
    'eNq1WMuO47oR3fMrDK2nPZYt99gXuAGSRZBF9lk0DIKmSjbRlKihqH7MIt-eU6RetvteJIv0YsYqllgPnjpV1IsnbVo6'
    'iUbVtPp9lVmrarWTxWZ_zsQb-c64huWbdb7eZKLr61r5T5b8kzVXu3W-gvLfVpV39arTXgV9_bZS3artz9Z0Vyp_W-Xr'
    '7ao21vJeXaC2y0RJleptkK1Vcf_rdrP52OfbTHj62RtPHUv_8jvsZiKoCz--iBX-Bhezb-mp9RS8Mg2eT9gVj1oFKvnt'
    'TIiX2pVkT6JSsP85BwgHTI3H_Hl3KEQjrfpErCzYPuPxSqpMTwc8vb5NgoPgX3J4GatV1QxP-922OIg3p9VZduYXJYXt'
    'Hvs5X0tEzRJ62uyFdy3JcKWg-L0N_603IhiSVJ-pLE0T462U7UhcK6m6jkInWxWuKa7gXqmBDb-QadfgvEIK4-UkWm-a'
    'IFUFiUxrw1mmbYfUrKMvnVYWRjlPOjjPgcIh695lheOQkxQYEFdzud6JC4idNxfTKCtr9SE7rFpiY4f8uIUtPmaADBbZ'
    'u-dCXNoeAcE1lsXEQhKBkG9ucfZcrNJ7rloRbIfVP6DybYX8rSrjuwBIqQv9toLRnhqdNItvm-MzA4A-WtLhlFKWTHaE'
    'fJTxZzLK2W9Jvcqaauc_5cWcB2nneq9pBFM6h9Ocfl749_e1VvpK34MJqnlKBdV9Tzj7Pqbl-_TOOuY943P11DreogYS'
    'nuIL32NVPaGqnriq2GipgjoNjgxHG-gjyFeK6eHfyNe1ryrLjgbfk-iCJyC-uUzHHV0EUn2Kpelr2Xqn8fSU8_l4V5kE'
    'AWrU2ZKcJNMWnXoDar2CG7JytkzhJ71xIRPjMyOEEbMZJV4CLuYt1sUse1e-7lvIdqPh4Qy6RrXd1YVb83eLCz_uVmLt'
    'gxmMxnlZd1n4M9gJgIPzZ6d8OaatNF1c0s46lBYX0GMCzgujASQZpRX0lbXSq-Z1Lt3B0rtqyvOi8FwbTM1QmGn3r6Wq'
    '_5UJG0svcsQZmMgjCo_x9zb93ouZSA7iPRaELMF5n3E9F6ZuLdXUBBUG6q76jspMkPIW-QH9StPIs9Kv7yn00S2LygBI'
    'yt6yZ-lgon4kPnAUcB9Q4KMIwImGETRMRQEqJonCZxvj0q4zDWUCWJTYf2IM1BbDLjJ3RB2jHMUV3ymy8XFBbxbEauE2'
    '2stEr-Ji3flButkWYiagAjwgmJOYhQcKGyPIt5F7x3PSbS8dysipOS3lGAmLw27LoXwQyIPrnAkVLnrFG2fnqJI_P6p4'
    'JFXf7nLRIyL3G34o6dxfFocxZmbNmWCPIlpQte_OvyaOZ84CpyMY8PwsTju0SHgqiVnkqSJO1HQKqfThv7WEXl2nY5Cj'
    'hPnJGm6ncO_iKeX8VqW7AkTzMnasurLFm2khtR9Ux4C1bOj7aGGx_OaNlhaGMrSu6yaF-6JS3Wej5d0ui_BbRNTQl_uD'
    'gHtmqJ9DP4iEzJph6JwPL8c-I2OfAazg1TwvfKFt1f-kzIupL_ErKYmPemNpchLzv-doDX-sI3X3lqrmUac22ru7MnrU'
    '4q7pw_zsMD5Y1Y5Eif4Ze9BX2X1YY_SiRDEB6MSaPEIFZWz2qOvBMIFpPlxdxAvEF3AAeRDYnU8Lm8PSn2Dq_mXt6jqS'
    'IDXRDnLflMAo9w1kUb-2Duw_dsMx7gF7FSh3Kks5q3ej3twhFouZwL_k35SNLAXeQYUHo4YMzVR3I07gdE2cXuPmN8so'
    '82s1wf5xSf7sFbrYL5opLcEzdtPl3veLtzsjfw75e6TDVId1muKy-JSJV0KXsThJbPYam3v0iHk34Zs-tO1LnhJcHb1N'
    'ffZlGj_GisM-cwrnaQbjDWDSEWj2i-Vo7CYszG48fMSeKJfnOzpe9RZ47MhSHFIwq0hu06mDIkyuT4d2CDnYTBMYDhBq'
    'ewZrzSyImU-ePyOpzFeV2hEGbCj5NVBM8Y4y9mHXTt4Ns8u5Ly-xBW7We_Fmuh5D-a9p5kmrjGAKbknqHTAFf5oLE0iY'
    'sFoSzKLvgtdTxDf0e99vOBgMZPeAZ7FrKEF7Corn1-H6xRwdw1rUkmnQ7tBhuJZG-K2ZX5RfR9wc5mPmZpFkcX5Ktb6M'
    'bszyoFR-YmQyOt5Y0tjFW0wvpOlbjmNVJjBlxg40HAsM171NWRpDv3ex_gAsPqr2wBe7XGquCPTWhlnj6kxq5Jgsg2uy'
    'e4PpPY2rr-oejKeMAQ4IKOZsYfsCmLRAc11PKZp9_lqP_fzKfHbzJhPdKRKDxNRJsD7cf1hjx0MdTxpfrOVpDVA_99XY'
    'K-LA9Ac3gUip4zXgRsXE-wRV5oP1eEaW2VR5EyTFS_okEBwGUG4Wpzi3AeABrTm6Ky7RodsAJsSOmHGau27MFBvAkOiy'
    'W_EUbj1Eim2GYUeaMs5WSW8IexMH2FFj6psd1UYm_psaFscBijdl5JrTvXc3c66cFf_LkfewmGy3m-Ig5mvNYixfevD_'
    'HyAjleCGSpQyNxNPMHoOfCnla19zy9CgyoFZl_PC8tYUb9KwAzKrlZy_Z_DAeAFI4mRU7I55_kOrI-XHH0ddVMeqItLV'
    'br8vD_mz2h6P9PzjUJZUFMVzqc5E2-1he9jr82ZfHjNx7pvSDuQxfZzKx49T6FpI13CJ5qHIm5KmWkOO0TtKXJ6ct-V4'
    'ZnhRxJF4GKaTy20anYd13UZpSP-16T9q__ySg2IoDZ-d0rqPtMbdbcTB9uaTR-q8RX4sdpviy8tdurhNV6P8uI2lPo6U'
    '93em-AWBrz5dvGTtD_vd7nDATgL81Sar0QF2Zb_dHQ-bw_7Hrij4m0zzdhL_Ab0e-YU='
)
RECIPE = 'llama3_405b'
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
        "64",
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
                num_replicas=64,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
