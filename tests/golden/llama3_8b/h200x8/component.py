# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h200x8"
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
    'eNq1WMuO67gR3fMrDK3Tbsl2d9sBJsDMAEEWAbLMomEQlETZhClRl6L6cRf59pwq6uXHBMkid3HbLD7qwVOninr3ujCt'
    'PopG1Xr1yyqxVtVqK_d5Ij6074xrSJqus3WaiK6va-W_SfJ3WrfarrPV_rdV5V296gqvQnFeYcfvuz-vstf9KjfW0gnB'
    'XXTTJaLUleptkK1VfOw5S9OvfSK8_tEbrzuS_eUXKEtEUCcavosV_g1WJX-Ko9br4JVpMD7iTAwLFXRJuxMh3mtXansU'
    'laqN_Z59gnpTY7hLD6-ikVZ9wz-MtxuMzlqV0-DyMY33gn7JuDPb7EVVNeNot92-ig9XqFx25qeOCzYvONz5WuqW9mf6'
    'KX0R3rVahrMOCqKXlP6tUxGMlrrOdVmahp2tlO20OFdSdZ0OnWxVOEenOIDQ4ReywjW4oRCdeD-K1psmSFVBIuPccHvx'
    '2CEua7alK5SFUgpSEZwnR2GQdZ-ywl3ISYpbF2dzOt-IdxA7b06mUVbW6kt2mLWalO2zwwa66IYBKmjkKIhT28MfWEYi'
    'jiskDIFNeg2sfzR6xYtctdJQHVZ_4yXiXX-1ugjHGIx4Wqfhack_43kU11ari6x17fy3PJl8kHau94UeMRIjfJwDSxP_'
    'el4Xqjjr52CCap5ianTPET7Po8PP0541RzShG_O6dXREjTt-4g3PnCFPyJCn_W-kslRBHQczhisL-ivIi2a_6TcCce6r'
    'ypKZwfdadMFrwLg5TdfIBgKBPnrS9LVsvSswesoo7t5VJl6tblRutZwk0xGd-gAavYIZsnK2jM7HdeNEIsYx3TxdYTpK'
    'vAQMzAfjfZZ9Kl_3LWXQqHi4ga5RbXd24Vr9zeTCjpsZTmikuylwW9adFvYMegLA4HzulC_HsJWm46nCWYeUocS4D0C-'
    'UBpAdyytsF5ZK71qLnNKDpo-VVPmi4RybTA1AWGmz19LVf8zEdZH1KXpVuSARMbDA__exN8vYmaIvfhkqMsSTPbN85kw'
    'dWt1rZugwsDCVd_pMhFaeYsABd1K08hcFZfP6Ptol0ViACVlb8m0eDO8nvQhmUA9LiBzRxGQw4rhNVSxAAkTReG7ZccK'
    '15lGJwJglDh_ogI4SbhjPmbYEcyRW7xnl4zDBW9ZMKaF2agVI29uxMm6_Fb6km3EDbEQ1xC7DtQ0OrAjRh1vqWh76ZBE'
    'Ts0xKUc3SBy2G_LjS4M4KMeJJmGfV3RskvOS7PV-iUdEi-tTTsWIx5eUBqXO-9PiJsawrCkMZBFjBTn76fwlMjfxFZga'
    'roC9Z3E8oUW0Y0LMIq8rTVGariAmPuy3VlvT1fEO5CghbrKGKiTMO3kdE_d6SXcGguZpnFh1ZYudcSIWFeTGALRkKOQo'
    'TJx880FLDUMSWtd104LblFLdd1PIm1MW7rfwqNEPzwf59sRPP4ZawGRMK8NQD-82V8Z3AahXJ1ilYdXUA2QPVlv1Py2m'
    'yViTaEsM4v26MS8piNlfMxSGP14ji-4jpsz9mtoU3l1lyyNtVDF9mMcOTYFV7UiTqJ1cgR5F926O0Iv8RF0vImdSYxSU'
    'scn9Wg96CUTy4ewYLxCfQADag71ubFroHKb-A6ZuNxeurpkBdcN6EPumBEapaiCKxaV14P6xFo5-D9irwLdTWsp5eTeu'
    'm-vDYjIR-F_7D2W5CoF3kOHBqCFCM89diSM4XcMNKR9-NY00P1cT7O-n5I9eoYb91DOlRXhyLV2efTt5fTLi5xC_ezqM'
    'eVjH5izhUSIuGiXG4iZx2IVLO1tErBvxrb8K25fUI7iarY1V9n1qPsaMwzlzCOdeBs0NYNJp0OyDaVZ25Rb6Nmo9uCDK'
    '5f2Ohnfaam5OUM7Hn2hXJFXqWENdmxDhQoL4FMRphQbPAUhtT5CtiQvR9cn8m6llfoPUTqN5xiK_BpY1Pz7GUuzaycah'
    'f8n78sRVMF2_iA_T9Wi4f059T5wlHOvgltTeAVmwpzkRjYQJsaWGWpResHv0-4qEb6sOOYOm7Bb2JHaNjgCfnKIOdnhX'
    'EVOzW4uMMg2KHuoMZdQIwjWxjPJrRs9-vmwqGVHGPVTM-KV3Y5SHReU32iZT8Gsktl50xLQh9t9ybK0SgU6T69BwLVBc'
    '9zZGaXT91sT6C-D4qto9PdoyWVBeoMI2xB1nZ2I5R3cZXJPcKoz7ij5HNt0pjxEDHOAQx2yh-wSYtMB0XU8hmm1-vI7s'
    'fKQ-udpJdHdkepDoPDW0Dy8gfrpSX0f9xoO5LM4B6nlfTV0Xd02PXwNMrONT4GqJ4TeFrswXraM-WSZT_k2QFO_xpR8c'
    'elAqGUfu3QDwgALN5ooTG3TtwITYETOuoNrLkSIF6BNdci2e3K0HT3HM0PJIU3KHFdcNbqfcw44rpurZ6drIyIJT2SI_'
    'QPSmZMY53lp31erKeeF_2fXuF93tJt3txfy0WXTmSwv-_20kUwleqVrHyM3EE0wxO76U0tOvueZpUOXArMuuYfly4rc0'
    '9IDMaiXnbxXUNp4AEi5OeXHQm1y9vFTpJlVq-1bl6lW9pVuMqte3_PDyisFbtc11qXVa6X11yJXeb_MNlm0TkfdNaQfy'
    'mL45beI3J1QuBGt4RlNj5E2pp0xDhFE6SryenLflfGPcFA_tdDS3jc0zzxYty0L808Y_Ov75oxcOsqA0dGmqKHrmMypu'
    'IwC2m6vPHbHy7rLDbpvuHr7s4qtt2r7nFB8byuv3En87oGcPf-hKt-nmNdsQDK1roz5WTXa-HbLdbnc4bFL6DtN8HMW_'
    'AZWF6Ek='
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
