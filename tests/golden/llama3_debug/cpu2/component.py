# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
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
    'eNq1WEuP47gRvutXGLrksmv40d3jXmADbAIklwSYQxY5GA2CkiibMCVqSKq7Pb8-XxWpl-0dYA8xMNNi8VVVrPrqI49O'
    'lbpTb1krG7X6dZUbIxu5F5Uq-lOevSvntW2pY7Perjd55vumke5Kkt9WL6t_rzrpMDUot_oXTV3tVxgfzmrlbe9KtbL1'
    '6us1nG37F7-S_tqW2v6CfqfUqtFtH5SnCXJlZBdsl2eVqmVvguiM5H3Lrt_lmVPfeu0wFpK__gpd8izIEzWP2Qq_pHf-'
    'U2xF9cdGY_H9hqU7mCuDqmiZPMuOja2Uectq2WhzncyHFrpBc_f8krXCyCvcgCY1zkpW9L2lxuV93qZPESeiVddtanx5'
    'OWTvtpSF8Po7OXm3eTpkrXXUmbvG02fOAqE6Xkz9vHmOgr7VQdi69iqgo5bGq6yzPgjq9aPo20WkBWNbhqDagKMThZbT'
    'MFkG_S5DOlKvTY8TLaVRQjWFqirdnvyDNXgI5Jv1Zi61dRCl7FKH7UPXh1vpbLhuL48WL2R5US0fia86CYWMJkXEh24r'
    '-0HrZCdjC2mEQjxeWeBspwSiLEg0nzf0W8-lwsDhJukQ9EP7zrWQHn71opPhHEMiWOiCU3IzWWlb7BtiDBzfss7pNghZ'
    'QyJiX8qRuGx2pNBFRiG2-DCzU9djD4wmEZ0_SWht2V4XGfWfD7tyktzEOaT9qpHlWbfql5UOfvXPr7_7la4pu5xaSfrX'
    'Xn9aKezK_X__-jsFtfrsVBneoi1xY6-gaMWfcWtyS6fkRTRIDncVJ10kaUrblCDRQW-TX6hjbKw5f3LypFOdHSZVMsi3'
    'tFDyWVCfQVwUW0nf8OpZBhFUA2cFtUg9W_YNYkM00l9Gr_pzX9cchMH1aAankLTtaRzgKPsk5SB7uITjFBLQRaXavhGd'
    'syVaP2_piJyttcH8t0y1skACjJJpS_mOaHISRojamioaH8cNHXk2tGtAFJ32ZpA4wdmmOARG2Yd0TU_JsR82TifgW9n5'
    'sw3L7W86Z3rc9DCaqeB0idMy9jTo8zxsg3Tz1hVWumpwYqU9d5XWWAQ8hfW9_cVsz1DkUVpjvDRGxGAdJqSdPmRbFbN0'
    'sF3QDYXLVGV-q2Tz3zwzLgbdZp8VSNott175exe_of6IiIfsQ-nTOaA4lZJhYL3NNAJIUbiMqFb3XlV5pqQzcE9QndAR'
    'ZD6i6VGtpgf0NJZm9s2wl8cqCJpw7VjLsbTlg2koRgTGxspppZOzfZfCPDsaJBsir-oN2RtPm7XwDPxIpAAgGwSIRTYG'
    'joT6LEAKRtGgRWmBnCrPEO0Cq9eIKuuS9dkRYahbjmPKulglch8qo3FWSTRiWaq_cDyhI5wSyvNQlJ4GkF1ID5lX34RR'
    '5Nnt7pA18nMoNKTpYMd-s_mRi0aPkjjsd2TMpwIeEfsg8BTs6h-OcPBpuVzEWO9Fee7bi4hYFz3K4otyrTIRrVx5zrPv'
    'guUxhBLWncoxTbjBtGEWuYNz1-RIsohjGFDyYd0l1gOCUeC_p2o2E6dCjSOLeTqJnKoVOXg8x4hHsN8YZbRv4kmKQULI'
    'anTJgalORJsIT5ZD_BmhPXVjxRqlFDNjRyxVyNmUAXniWCh3DArTQvMdEjiw14YBt6nOASVuVpmZ38GiVj1cH6WjJ9j8'
    'lkoUlxIaGVKVvZtcawfegxw9QSsFrUZitn0w2sg_NZg6Y6mkKdGJ9-OG1CYnbv-x_Vv-gzGi9O-x-NyPaXTp7CLRHu1G'
    'hdyFqW1BNQwzq-hf1HSuq4_ce9dH4YvcBjUpI5hTqQxSm_x-rLMMhMC-s-WAgfgkiXYACW-Umu2Zun4QVLeTS9s0CwIY'
    'UDsQpFTN4Mby0lkUpaFGD3UrBR945pSXYhruh3FT4Zp15hn-V-6d2eHLBi0dtEz-mUjfQhxj07Z8R-ClF93I8nM9nsp9'
    'l_jWS5TW72pCxBidXOHna992LleG9yy8d4-mMQ2byC7zlLlw4kWh-hG_wnoX5hysFKF2jHD1WZq-IvJiG1Y41v_jyIqG'
    'nMM6kw-nAATpQpx4BaR-0M2bLSwDoRxvIGJ-wIPuraVS55VRzJ1AoQTRh1jZYSllqEVBhRx4VipgHGII9w44siEc7EDW'
    'iivDynQ5bKxao0rj2NcIY8WXQfavHQp3Mve2cA0kwk5Jl3hX0VcnFevIc_aufS8NDlgseinOVbBz7PeIPCiN2w1zjZGJ'
    'EctAgQf8R7csUPq2LJHFIJOztBjwoOngv5gBo-nE0NNNmLCcjZ-lHC5ZPVWi_JYyZ8chbNcES9KtOd4OU2xQjYkyJoMR'
    'IQaTuulk0pjqCvqny3ibZApJKwzj40OEGBhinoEvc9lKJ4kTu2icfIOtRiBo-nR7GFxzq3Lzidj6rLsD3cW3uJdSJjA1'
    'gJ-tjoQCrDnYNr9VIc4r-wL5eKdOdGi887JLZ3szI0RKNM3ossmKx-NIz0fb54uZoOm4WBHpjm8M0nRnugDvd3TLlY5i'
    'LtbVcQoh7BtjkgALV5Zu6HwZHGgbc5wHfdvYhxQr-np6ucDvDy5GjOXDrWgxRPP1StX6kx88oL7Ix4wfozw7xoefYEGd'
    'qUq9MdtEzsAyDuk9uDYptDTgJgnolkf1np1LG4DW2nwpHs1tkqVYJtEsoav44sDjktkbJt_DiLFie9VoEaF3rJRkB2qL'
    'rhjjbivXHUcX09g_S9eXxDzx2JeJkz8tNPn_U1hGKWSpUtGDE6YFXU5XgbmUbsPtskIAqhOyzwnL_Dbp9EnDsUSzGimm'
    '1xeirCcEC3nusK-Ll-fi9VXud5vqy9Pry9PuucIxl9UTfvVz_WVX7Tfb3X5TPj_tvmzRqstio16LQ1F9KfOs6NvKJCRa'
    'PkWiYvqgEkgSJXO6mvIN_kXdqnD1s85UY95kTMcTkY_KdpG2x9eKjmUh_uniHxX_PL6WIRMqTQcmy7JnGOQ3tnT228Xj'
    'Tyz3283u6cGFNF42R8Fhk40Edn674wcUuqTxQ-j2ZQ-fZUC3Lu7B29HQl-3r8-FpQ89Q7Ts5xOugKCoCZ-NxEK3JdmiD'
    'vvQYlt-9k23glz5G6N0zFZM4wEALojDkHa_rTe-acReitsA3CnrXt5T2E8vQTWT6dML8Qs13fv4aV2ssZvlxOSCPU7M2'
    'pYKhC-VdLR6YVYEgHl4CU4Qjo_y5SbbQLZpgrkSOX4S_qI8ZvD2vI_IUYMUfugrnmQP-B8YrIJE='
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
