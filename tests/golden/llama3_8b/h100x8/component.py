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
    'eNq1WMuO67gR3fMrDK3TbsmPbjvABJgZIMgiQJZZNAyCkko2YUrUpah-3EW-PadIvWx3BskivbhXLD7qwVOnin5zVOiW'
    'TqJRNa1-WSXGqFpt5SFPxDu5TtuGpek6W6eJ6Pq6Vu6LJX_ndavtOlsdfltVztarrnDKF5cVdvy--_Mqezmscm0Mn-Dt'
    'lZouESVVqjdetkaFYy9Zmn4eEuHoR68ddSz7yy9Qlgivzjx8Eyv8DVYlf4qj1pF3SjcYn3AmhoXyVPLuRIi32pZkTqJS'
    'tTZfs09Qr2sMd-nxRTTSqC_4h_F2g9GFVDkNru_T-CD4S8ad2eYgqqoZR7vt9kW820LlstM_KS7Y7HG4dbWklvdn9JTu'
    'hbMtSX8hryDap_y3ToXXJKnOqSx1E5ytlOlIXCqpuo58J1vlL9GpEEDocAtZYRvckI9OvJ1E63TjpaogkXFuuL147BCX'
    'dbClK5SBUg5S4a1jR2GQsR-ywl3ISYpbFxd9vtyJdxBbp8-6UUbW6lN2mDXEyg7ZcQNdfMMAFTSGKIhz28MfWMaiEFdI'
    'RgjcAOsfDa3CIlutCKr96m9hiXijz5YKf4rBiKd1BE_L8BnP47i2pK6yptq6L3nW-SDtbO8KGjESI3yaA8sT_3peF6q4'
    '0LPXXjVPMTW65wif59Hh52nPOkQ04Rtz1Fo-osYdP4UNzyFDnpAhT4ffWGWpvDoNZgxX5unTyysFv_kbgbj0VWXYTO96'
    'Ep13BBg35-kag4FAoIueNH0tW2cLjJ4yjruzlY5XS43KDclJMh3RqXeg0SmYIStryuh8XDdOJGIc883zFaajxEnAQL8H'
    'vM-yD-XqvuUMGhUPN9A1qu0u1t-qv5tc2HE3ExIa6a4L3Jax54U9gx4PMFiXW-XKMWyl7sJUYY1FynBiPAYgXyj1oLsg'
    'rbBeGSOdaq5zSg6aPlRT5ouEsq3XNQNhps9fS1X_MxHGRdSl6VbkgEQWhsfwvYnfezEzxEF8BKjLEkz2FeYzoevWUE2N'
    'V35g4arvqEwEKWcQIE-t1I3MVXH9iL6PdhkkBlBS9oZNizcT1rO-DYwC7D0ydxQBOUExvIaqIEDCRJH_aoNjhe10Q4kA'
    'GCXOn6gATjLuAh8H2DHMkVthzy4ZhwveMmBMA7NRKybeFGdj83vpPtuIO2JhrmF2HahpdGDHjDreUtH20iKJrJpjUo5u'
    'sNhvN-zHJ4E4OMeZJmGfU3xskocl2cvjEoeIFrennIsRj_uUByXl_XlxE2NY1hwGtihgBTn7Yd01MjfzFZgaroC9Z3E8'
    'oUW0Y0LMIkcVcZSmK4iJD_uNIaO7Ot6BHCXMTUZzhYR5Z0cx4LdLugsQNE_jxKorW-yME7GoIDcGoCVDIUdhCsk3H7TU'
    'MCShsV03LbhPKdV9NYW8O2XhfguPGvr2fJBvz_z0Y6gFgYx5pR_q4cPmSrvOA_XqDKsIVk09QPbNaqP-p8U8GWsSb4lB'
    'fFw35iUHMftrhsLwn9fIonuPKfO4ptaFs3c59LiKK6bz89iiKTCqHWkStTNUoO-i-zDH6EV-oq4XkTO5MfJKm-RxrQO9'
    'eCZ5f7EBLxCfQQDkwF53Ni10DlN_gKn7zYWt68CA1AQ9iH1TAqNcNRDF4tpacP9YC0e_B-xV4NspLeW8vBvXzfVhMZkI'
    '_EvuXZlQhcA7yHCv1RChmeduxBGctgkNaTj8Zhppfqkm2D9OyR-9Qg37STOlRXiGWro8-37y9mTEzyJ-j3QY87COzVkS'
    'Rom4EkqMwU3isGso7cEiZt2Ib_osTF9yj2DrYG2ssm9T8zFmHM6ZQzj3MmhuAJOOQLPfTAdlN26hb-PWIxREubzf0fCO'
    'DIXmBOV8_ES7IrlSxxpq24QJFxLEp2BOKwg8ByC1PUO2Zi5E1yfzr0At8xuktoTmGYvcGlim8PgYS7FtJxuH_iXvy3Oo'
    'gul6L95116Ph_jn1PXGWcUzeLqm9A7JgT3NmGvETYkuCWpResHv0-4aE76sOO4Om7B72LLYNRYBPTnEHO7yrmKmDW4uM'
    '0g2KHuoMZ9QIwjWzjHLrgJ7DfNlcMqIs9FAx45fejVEeFpVfaJt0EV4jsfXiI6YNsf-WY2uVCHSaoQ4N1wLFdW9ilEbX'
    '702sPwGOz6o98KMtkwXnBSpsw9xxsTqWc3SX3jbJvcK4r-hzZNOD8hgxwAEOhZgtdJ8BkxaYruspRLPN369jO79Tn9zs'
    'ZLo7BXqQ6DwJ2ocXUHi6cl_H_cY3c1mcA9TzvhorxiZ0Td-_BgKxjk-BmyU6vCmo0p-8jvtkmUz5N0FSvMWXvrfoQblk'
    'nELvBoB7FOhgrjgHg24dmBA7YsYWXHtDpFgB-kSb3Iond-vBUxwztDxSl6HDiusGt9PQw44rpurZUa1lZMGpbLEfIHpd'
    'BsY53Vt30-rKeeF_2fUeFt3tJt0dxPy0WXTmSwv-_21koBK8Uoli5Gbi8bqYHV9K-enX3PI0qHJg1mXXsHw5hbc09IDM'
    'aiXn3yq4bTwDJKE45cWRNrna76t0kyq1fa1y9aJe0y1G1ctrfty_YPBabXMqidKKDtUxV3TY5hss2yYi75vSDORx_5sT'
    'KheCNTyjuTFyuqQp0xBhlI4SryfrTDnfWGiKh3Y6mtvG5jnMFm2Q-fhfG_-j9g9fOMiCUvOlqaLoA59xcRsB8LK7-bkj'
    'Vt5ddtxt0923L7v4ahtF20NI8bGhvH0vhd8O-NkTfuhKt-nmJdswDI1to76gmu18PWa73e543KT8O0zzfhL_BmY86Eo='
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
