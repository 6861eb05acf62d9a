# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
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
    'eNq1WE2P4zYSvfNXCLrkkhiy3e52B0iAJED2soudS7CHhkFQEmUTpkQNSXW38-v3FUl9-CMD5JAGZmwWi2RV8dWrot-s'
    'rFQvD6wTrcx-ynKtRSu2vJblcMzZu7ROmY4mitV6VeTMDW0r7IUkv2TP2X-yXlgs9dJm_6al2TaDvj_JzJnBVjIzTfbl'
    '4k-m-85lwl26SpkfMW-lzFrVDV46WiAyLXpv-pzVshGD9rzXIpxb9cMmZ1Z-HZSFLiQ__wRbcubFkYZvLMNfsjv_Po6i'
    '-dOgNfh-wNY93BVe1rRNzthba2qpD6wRrdKX2X1YoVoMN7tn1nEtLggDhjQ4SVHT9zUNzu_LMX3lcSFGTdOlwcvznr2b'
    'SpTcqT8pyJviac86Y1su-7BW_lDsmDW95AicFxDtCvpbFcwryWVbyrpWXfC3EdpJdmq4cE56x3vhT9Edb86ywwl2IatM'
    'hzv00f63A-ut6jwXDSQ8zqX7jduyNwo70IC4BMvYsR9wBrRJNEpob9FdrtDw305mVnTneP3KZa2oTqqTP2bKu-xfX_5w'
    'mWoIGFZmgv51l-8ziUPD_G9f_qD7kJ-9rPwhuhLPdRJ21uFrPJmi0ktx5i3u1V74UZVJmhCX7jbG5zCHhSamwSpcfU6B'
    'tLI346JaeHFIG6WQefnp-VkGJ-k7vD4NTaPpIG8HyZy3EgDqjlMYK7gucfs2btsNLe-tqTD6YU0xtqZRGgsOTHai1JJP'
    'kmkLJ96BBitgBm-MrqP5UW-cyNk4bpAfdDnFKLFcVF69xxubZB_CtkMP2XY8OMXQdaJ3J-Ovj7-ZXNhxMxNSSXqrKsRb'
    'm-Noz248xuM2jS2NsPUYtVq5MFUZbYBYwuW9_-XiTF_mUdpAX2jNCW1zRqSTPkRXlws8m96rli58prhfatH-L2faRtgU'
    'W1Yi6dZh9Bq-b-J3mD_l5559SHU8eTBjJS5hfs1U22vZys4Ln1iyGZyscyaF1QiPlz1XHS9Fdf6Iro9maQAbGKkHTZbF'
    'ewn6LvADQOuFngRATTgWLuOgIADco8hf-uBVZRyyLWcAIsfuDe7f2GQnewNgVBcQRwhHYtAS52utENUkmmgj0TRCBNbS'
    'MN9Xp5G79uyoTXkvdfIr15JisN7sWSs-OREcDSkxkx_bohjvCbTODbLIiDks9egLif12Q858SuQ-FSniKR6KzTc1LGJa'
    'XW9yrCY8FjQIxWFxF2NsVhQHMiiABTn7Yew5MicxDpgSfoA9Z3HcoUfEY0LMIisbSfGZriEmPszXWmrl2ngRfJQQCWlF'
    'tQnmHak4UuJeq7gTMDRPY8fG1T1WxolI6kiOBLU8VVIUhpB980bLE1IWauPcpHCbUwEP_GaXhfs9POrkw_3BsgPx09fE'
    '5oF1SdOnenS3uFHWeSBfHGGVhFVT-V0_0NbibynTZKwqtCQG8V5vzEwK4vr39a_5N3R45d4jy9_rtKqy5ipPHp1GNc_6'
    'eWxQlNEMjTyJ6hcq0KPo3s0RepGZqOFVJE3qSbxQOr_XtaAYTySP5izgBeKjoAIN_rqxaXFmmvoGpm4XV6ZtAwfKro60'
    'A44GRqlqIIrVuTcg_7EWjn4n7DVg3Ckt-azuRr25QCwmc4b_pX0XBNPnAiPllUjxmbujK3GEpulCIxi2vppGkp-aCfT3'
    'U_zrIFDC_pQzn0Vwhkq63Pt28npnRM8gevdcGLOwjW1YnhIXQTxLVBmNq8R-51Dbg1HEuRHg8rPSQ01NgmmDwbHOvk3d'
    'x5hy2GeO4dzMoLsBTpwEzz6YDoddeYbWi3qPUBP58oJH2ztDhcpJLUOPglaFU5mOFRSeUoIalEPIQWeVBMUBQ_1AaG2J'
    'Bns0ReUlsMr8AmiNXFkDJbsCjGXo-Mc6bPrJutS6lEN9DFWwWO3Yu3KD0Lg7fjVLEJbeLFndAVSwpzsSg_gJrDU9gFB5'
    'QezR4yv-vS045Az6sQXiU6QhR2giuCevqE1NLxli6eDXIptUh4KHGkPZNEJwRQwj7CpgZz_fM5WLKAsNVMz2pXtjmJNS'
    'fUHPpCqQndCx76ItpgXx7cjHvipn6DJDDUr3goPbQccwjb7fmth-AhefTb-nx9KaV5QVqK4d8cbJqFjK0Vl60-W3B8Z1'
    '1VAil-4OjxEDHuBQiNni7CNw0gPObTuFaLb5sR7Z-ej4_GolUd0hkANH2ylxenq_jN1P6DUezK3jHLBeDs38TsTfX7wE'
    'AqmOz4ArFRXeE7JRn6RHTTLPp9SbMMne4jPbG3SgVC4OoWkDwj2KczCXHYNB1w7cQJaeNVR3Q6ToAHSHJr8WT-62yVNs'
    'k9odrurQXUW95HYRethRY6qcTraKRw6cShb5AZJXdSCb2xJy1-ryWffvdr3X_W3qJ5_n1vbpypJ_vpUMnIKXqpQxgjMD'
    'eVXNHfVSSs-_7pqqwZmJYpedw_L5ZNVRIbDU7rSCz78XUOt4BFgocvttUz7vytdXsd0U9cvT6_PTZlfjmqv6CX_NrnnZ'
    '1NtivdkW1e5p87LGqKnKQr6W-7J-qXJWDl2tE4ksfvhZo23Rg_MyPaSpNbKqllO-Ib4oIDVeUMbqesZKaItTQz0KQpcc'
    '26Y-fPj40ccPGT8ev26QCbWiCxNVNQROo9o23v366veKWHfXxebpwbsuvtkmwb5gUyO5fCSFXwzorRN-dlo_bxEzBqrq'
    '4xnhOFJ9Xr_u9k8F_XLSvR_Y_wE4h8vU'
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
