# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_1b@0.1.0, plan h100x8"
#   digest  "4824269222aabfd83ac9a3ab09ab0412b4bb3a940aa5d34c692f6c44073539a6"
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
    'eNq1WEuP47gRvvNXGDqn3ZYfPe4AGyAbYLGHAHvMoWEQFEXZRFOihqL6MYf97fmqqJftniA5pIEZm8VHPfjVV0W_BKNt'
    'a06iUbVZ_bLKnFO12sm8yMSbCZ31DUk363y9yUTX17UKnyT5J61b7dbbVf7rqgq-XnU6qKgvK-z4x_6vq-1hVVjn6IDo'
    'X03TZaI0lepdlK1TfOol32w-jpkI5ntvg-lI9rdfoCsTUZ1p-CJW-BuMyv6SRm0wMSjbYHzCmRhqFU1JuzMhXmpfGncS'
    'laqt-5xdgnpbY7jd7I-ikU59wj2M8yeMLkaVNNhtMXh9m8ZHQd9k2vm0F1XVDINj_rwVb16rQnb2B4Uu3x63BxzmQy1N'
    'y0ebh81BBN8aGS8mKogOG_pbb0S0Rpq6MGVpG3Y1ht6ISyVV15nYyVbFS_KIowcVYSHTvsHtxOTBy0m0wTZRqgoSmeaG'
    'm6uU68wYlDWb0mnloJMipKMP7DUMcv5dVrgJOYlx5eJiz5cb8R5iH-zZNsrJWn3IDrPONGNQxAvdLxAFlRwFcW57OATT'
    'SMRRhWQEwBWq_mjMihf5amWgOq5-5yXixXy0RsdTikY6rTNwteSv6TyKa2vUq6xN7cOnPNtikHa-D9qMCEkhPs2RpYk_'
    'H9da6Yt5jDaq5iHlRfeYwPM4Ovw47VlzSDO6smBaT0fUuOMH3vDI6fGA9HjIfyWVpYrqNJgx3Fk0H1G-GvabviMQl76q'
    'nBnB0MVgAOLmPN0jGwgAhuRJ09eyDV5j9JBT3IOvbLpb06jCGTlJpiM69QY0BgUzZOVdmZxP68aJTIxjunm6ws0oCRIw'
    'sG-M91n2rkLdt4SkUfFwA12j2u7i47X6m8mFHTcznM5IdqtxW86fF_YMeiLA4EPhVSjHsJW24yntnUfOUGbcB6BYKI3g'
    'OpZWWK-ck0E1r920YdD0rpqyWGSUb6OtCQgzd_69VPW_MuFCQt1msxMFIJHz8Jm_b9P3g5gZ4ijeGeqyBI998nwubN06'
    'U5smqjhQcNV3psyEUcEhQNG00jayUPr1Pfk-2uWQGEBJ2TsyLd0Mr2d-24B5fETijhIAh_XCaWhiAfIlieJny35p39nG'
    'ZAJYlDh-YgL4SLBjMmbUEcqRWrxnn43DBW85EKaD1agTI21uxdn54lZ6yLfihleIaohcB2YaHXhCnMc70m0vPVLIqzki'
    '5egFieNuS258GNAGZTixJMwLik7NCl6SP90vCYinvj7lrEc0HjY0KE3Rnxf3MEZlTVEgixgpyNh3H14TcRNbgajhCch7'
    'FqcTWgQ7pcMsCqYyFKTpBlLaw37njLNdna5AjhJiJmepOsK8czApba-XdBfgZ57GiVVXttiZJlJNQWYMMMuGIo66xKk3'
    'H7TUMKSg8103LbhNKNV9NlrenLJwv4VHjfnyfFBvT-z0fagETMW0Mg7l8G5zZUMXAXp1hlUGVs31_4vVTv1Pi2kyVSTa'
    'koJ4v27MSgpi_huVhZ-vkbp7Sxlzv6a2OvirZPlKG9XLEOexR0_gVDuSJCon15-vons3R-hFeqKq68SY1BRFZV12vzaA'
    'XSJRfLx4xgvEZ-S_CeCuG5sWOoep_4Cp283a1zXzn2lYD2LflMAo1QxEUb-2Hsw_VsLR7wF7Fdh2Sks5L58asbk6LCYz'
    'gf9NeFOOaxB4BxkerRoiNNPclTiB0zfcjPLhV9NI80s1wf5-Sn7vFSrYDzNTWoInV9Ll2beT1ycjfh7xu6fDlId1as0y'
    'HmXi1aDAONwkDnvlws4WEekmfJsP7fqSOgRfs7Wpxr5MrceYcThnDuHcyaC1AUw6A5r9YpqVXbmFro0aDy6Hcnm_o-Gd'
    'cYZbExTz8SuaFUl1OlVQ32ZEuJAgPpo4TRvwHIDU9gTZmrgQPZ8sPpla5vdH7Q16ZywKa2DZ8MNjLMS-nWwcupeiL89c'
    'BDfrg3izXY9--8fU9aRZwrGJfkntHZAFe5oz0UicEFsaqEXlBbsnv69I-LbqkDNoyW5hT2LfmATwySnqX4c3FTE1u7XI'
    'KNug6KHOUEaNIFwTy6iwZvQc58umkpFk3EGljF96N0Z5WFR-ommymh8jqfGiI6YNqfuWY2OVCfSZXIeGa4HiuncpSqPr'
    'tybWHwDHR9Ue6cWWS015gQrbEHdcvE3lHL1l9E12qzDt032BbLpTniIGOMAhjtlC9xkwaYHpup5CNNv89Tqy8yv12dVO'
    'orsT04NE32mgfXj_TG0d9RtfzOVpDlAv-mpquugV-pO3ABPr-BC4WmL5RWEq-0HrqEuW2ZR_EyTFS3rlR48OlErGiVs3'
    'ADyiQLO54swGXTswIXbEjNdUezlSpABtos-uxZO79eApjhlaHmlL7rDSusHtDbew44qpenamtjKx4FS2yA8QvS2ZcU63'
    '1l11unJe-F82vcdFc8s_SMwPm0VjvrTg_99GMpXgjWpMitxMPNHq2fGllB5-zTVPgyoHZl12Dct3E7-koQdkVis5_1RB'
    'beMZIKGg7Y_b_fbpebvdKlVU5XGn9LPaqWLzjH_7fFvsi2KnnvcbpQ7lbq-xtHrS-_3m2-6we1bo4Iu-Kd1AHre_N6Fy'
    'IVjDI5oao2BLM2UaIozSUeLt5IMr5xvjpnhop5O5bWqeeVa3LIvpo00fJn387IGDLCgtXZrSumc-o-I2vdW2Vz92pMq7'
    'z5_3u83-q3dderONksM3SvCxnbx6LPHPBvTm4aTZ7g7HHJHbCBBWm5SxXobj0-4pz_PjN_pZxzRvJ_Fvq0rlEw=='
)
RECIPE = 'llama3_1b'
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
