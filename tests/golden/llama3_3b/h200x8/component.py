# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_3b@0.1.0, plan h200x8"
#   digest  "0a687021ed0ebccb248fe6ca0f1e05473c1c3bd175e8b835119d820edb694ce2"
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
    'eNq1WEtv67wR3etXGFo3jiTbiVPgK9CvQNFFgS67CAyCokY2EUrUpag87qK_vWdIvWznFu2iWcTm8DEPnjkz9KsjpTs6'
    'Ja1saPPbJjVGNnIndmWavJPrtW1Zmm3zbZYm_dA00n2x5O-8brPbFpvd75va2WbTKye9umyw4y_7P26enjelNoYP8PaN'
    '2j5NKqrlYLzojAynXvIs-zymiaMfg3bUs-xPv0FXmnh55uFrssHfaFT6hzjqHHkndYvxCWdiqKSninenSfLa2IrMKall'
    'o83X4hLU6wbDXfZcJK0w8gvuYVwcMbqQrMJgj8Hb-zw-JvxNxJ05ltZ1O46O-UuRvFslS9HrnxTni8NT0lrXCOp4e04P'
    '2SFxtiPhL-QlRIeM_7ZZ4jUJakqqKt0GX70bKLnUQvY9-V500l-iSyF8UOFWMmVbXI-PLryeks7p1gtZQyLi3Hh1tTQ9'
    'TVHZBlN6JQ10coiUt45jUsAgYz9EjasQsxh3nlz0-XIj3kNsnT7rVhrRyE_RY9ZQOwUleeULBqSgMkQhOXcDHIJpLAph'
    'hSQgoMiuYfWPljZhka03BNV-87ewJHmlz46UP8VoxNN6gqtV-BrP47h2JN9EQ411X-Ksy1Ha28EpmiASQ3xaIssT_3rc'
    'Kqku9Oi1l-1DTIz-MaLncXL4cd6zDSFN-cocdZaPaHDHD2HDY8iPB-THw-53VllJL0-jGeOdefr04o2C3_wdgbgMdW1o'
    'AkPvHQHF7Xm-x2AgAOiiJ-3QiM5ZhdFDznF3ttbxbqmVpSExS-YjevkONDoJM0RtTRWdj-umiTSZxnzzfIXZJHECMNDv'
    'Ae-L7EO6ZugYSZPi8Qb6Vnb9xfpr9TeTKztuZkI-I9u1wm0Ze17ZM-rxAIN1pZWumsJW6T5MKWsscoYz4z4A5UqpB9kF'
    'aY310hjhZPvWzxtGTR-yrcpVRtnO64aBsJDnnyvZ_DNNjIuoy7JdUgISeRi-hO9F_H5IFoY4Jh8B6qICkX2F-TzRTWeo'
    'odZLP3JwPfRUpQlJZxAgT53QrSilevuIvk92GSQGUFINhk2LNxPWB0LLwDzWI3EnCYAT9MJpaAoC5EsU-a8u-KVsr1tK'
    'E2BR4PiZCeAjwy6wcUAdoxypFfbs02m44i0DwjSwGoVios19cja2vJUe8iK54RWmGibXkZkmB_InBHq6JNUNwiKHrFxC'
    'Uk1usNjvCvbjk8AbnOJMk7DPST42LcOS_Ol-iUNA1fUpZzXB8ZDxoKJyOK8uYgrLlsPAFgWoIGU_rHuLzM10BaaGK2Dv'
    'RRxP6BDtmA-LyFFNHKX5CmLew35jyOi-iXcgJglTk9FcH2He2VHM2-sl_QUAWqZxYt1XHXbGiVhUkBojztKxjKMwhdxb'
    'DlprGHPQ2L6fF9xmlOy_WiVuTlm538Gjlr49H9w7MD39GEtB4GJe6cd6eLe51q73QL08wyqCVXMHkH-z2sj_aTFPxpLE'
    'W2IQ79dNaclBzP-aoy78eo1Q_XtMmfs1jVbOXmXLd9q4YDq_jC2aAiO7iSVROkMB-i66d3OMXuQnyrqKlMltkZfapPdr'
    'HejFM8f7iw14gfgMAiAH8rqxaaVznPoPmLrdrGzTBAKkNuhB7NsKGOWigSiqt86C-qdSOPk9Yq8G3c5pKZblcye2lIfV'
    'ZJrgP7l3aUIRAu8gw72WY4QWnrsSR3DaNrSj4fCraaT5pZ5hfz8lfgwSJewnLZQW4RlK6frs28nrkxE_i_jd02HMwyb2'
    'ZmkYpckbocIY3CQOewuVPVjErBvxTZ_KDBW3CLYJ1sYi-zr3HlPG4ZwlhEsrg94GMOkJNPvNdFB25RbaNu48Qj0U6_ud'
    'DO_JUOhNUM2nr-hWBBfqWEJtlzLhQoL4KOY0ReA5AKkbGLINcyGaPlF-BWpZXiCNJTTPWOS2wDKFp8dUiW032zi2L-VQ'
    'nUMVzLaH5F33Axrun3PbE2cZx-Ttmtp7IAv2tGemET8jtiKoRekFu0e_r0j4tuqwM-jJbmHPYttSBPjsFDew46uKmTq4'
    'tcoo3aLooc5wRk0g3DLLSLcN6Dkul80lI8pCCxUzfu3dFOVxUfWFrkmr8BqJnRcfMW-I7beYOqs0QaMZ6tB4LVDcDCZG'
    'aXL91sTmE-D4rLsjP9lyoTgvUGFb5o6L1bGco7n0tk1vFcZ9aiiRTXfKY8QABzgUYrbSfQZMOmC6aeYQLTZ_v47t_E59'
    'erWT6e4U6EGg8SRoHx9AfXjVoq_jfuObuTzOAerlUE8Vo-Bn6C8eA4FYp5fA1RIdnhRU609ex22ySOf8myGZvMZ3vrdo'
    'QblknELvBoB7FOhgbnIOBl07MCN2woxVXHtDpFgB-kSbXotnd5vRUxwztjxCV6HDiutGt7PQw04r5urZU6NFZMG5bLEf'
    'IHpdBcY53Vp31eqKZeF_2fUeV91tke2PyfKyWXXmawv-_21koBI8Uoli5Bbi8Votjq-l_PJrr3kaVDky67prWD-cwlMa'
    'ekBmjRTLbxXcNp4BkvCLk3w6PmdFTlVGpVJlsT_W9KRkVueUHfbPO5WrXVnlzwc6lsfdIc9fqmORUVU-vewVoaqVQ1uZ'
    'kTzmX5yK-IsTKheCNb6iuTFyuqI50xBhlI4KjyfrTLXcWGiKx3Y6mtvF5jnMqi7IfPzo4gfFj1-9cJAFleZLk0oNgc-4'
    'uC0vm6tfO2Ll3ecv-122_-5hFx9t8-5DwRk-9ZPXz6XwywG_ekLuFXnxvH85FvsElNVFdUEzg_P5eVcU-eGId2rySu37'
    'Kfk3sR7mpQ=='
)
RECIPE = 'llama3_3b'
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
