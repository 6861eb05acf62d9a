# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "3905c4c5ad93ec0475f9913020b9742e405d07ec47412294480bfa4906347404"
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
    'eNq1WE2P47gRvetXCLrksmvIX9PdC-wCuwGSS4LMZZFDwyAoqWQTpkQNSXW399fnFalPu3eQHNLAjM1ikawqvnpV9Kul'
    'UnV0SlrZUPpzmmktG7kXFRX9OUveyDplWp7IN9tNniWubxppbyz5Nf2S_jPtpMVSTzb9By9N9yn0_YXSrzd_wVfnZVtJ'
    'W6VaFRYr_-JSZ3pbkvspbVTbe3K8QqZadt50WVJRLXvtRadlOLjs-l2WWPrWKwtdSH75GcZkiZdnHr4mKf4Gw7Mf4ija'
    'Pw0ag-8nbN3BX-mp4m2yJHltTEX6lNSyUfo2-w8rVIPh7vglaYWWN8QBQx5cSFb8fcuD69tyzF9FXIhRXbfD4OnLc_Jm'
    'SlkIp_7gKO_yw3PSGtsI6sJa-jE_JtZ0JBA5LyE65vy3yROvSFBTUFWpNvhbS-0oudRCOkfeiU76S3THmyu1OMEuZKVp'
    'cYk-2v96SjqrWi9kDYmIc8MFx22TVw474IC4BMuSc9fjDGizaJTw3rK9reDwr5ZSK9trvH_l0kaWF9XST6nyLv37199d'
    'qmpGhqVU8r_29kNKODTM__Xr73wf9NFR6U_RlXiuI9hZha_xZI5KR_IqGtyrvYmzKgZpBNZ4tzE-pzksPDENNuHqMw6k'
    'pc6Miyrp5WnYaAiZpw8vrhSc5O_w-tLXteaDvO0pcd4SANSepzCWcJ1w-zZu2_aN6KwpMfpxyzG2plYaC04JtbLQJCbJ'
    'tIWTb0CDlTBD1EZX0fyoN05kyTiukR98OfkosUKWXr3FG5tk79I2fQfZfjx4iKFrZecuxq-Pv5tc2HE3E1KJvFUl4q3N'
    'ebTnOB7jcZvGFoaJYIhapVyYKo02QCzj8tH_YnGmL7IoraEvtRaMtjkjhpPeQTfFAs-m86rhC5857tdKNv_OEm0jbPJd'
    'UiDptmH0Er7v4neYP-Xnc_JO6nzxoMZS3sL8NlFNp6mh1ks_0GTdO6qyhKTVCI-nTqhWFLK8vkfXR7M0gA2MVL1my-K9'
    'BH0X-AGg9VJPAqAmHAuXcVAQAO5R5G9d8Ko0DtmWJQCiwO417t_Ywc7kFYBRbUAcIxyJwUucr8DK2Sha0IYGXWnY7cvL'
    'SFqH5KxNcS-FZY6-CU3s_XG7Sxr5IZjaOGyckpNL-XhDIHRhkD9GzgGpRi9Y7Pc7duODkPVcn5ihRKgz39WwiGa53uRc'
    'TkjMeRDKwuIWxqhsOAJsUIAJsvXd2GvkTOYacCT8AG_O4rhDh1jHVJhFlmriAE0XEFMe5mtNWrkmXoEYJUw_WnFVgnln'
    'SzFl1yruAvTM09ixdlWHlXEi0jnSYgBZNtRQlISQd_NGyxOG_NPGuUnhPpuku7WluNtl4X4Hj1r6dH_wa8_M9G3g8cC3'
    'rOmHSvSwuFbWeWBenmEVwaqp8G4_0dbyf1LmyVhPeEkM4qPemJMcxO3ftr9l39ERpXuL2fKo06jSmlWifHYaVzvr57FB'
    'OUYbNDIk6l6oPZ9F92GO0YvURPUuI11yN-Kl0tmjrgW5eKZ3dGgBLxCfJZdmMNedTYszh6nvYOp-cWmaJrAftVUknNgM'
    'cr1AFMtrZ0D7YxUc_R6wV4Nrp7QUs7ob9ebSsJjMEvxP9k3qmPXIb6_kEJ-Z4FbiCE3ThhYwbL2aRpJf6gn0j1PiWy9R'
    'vP6gmc8iOEMNXe59P7neGdEziN4jF8YsbGIDlg2JiyBeCfVF4yqx3zVU9WAUc24EOH2Uuq-4PTBNMDhW2Nep7xhTDvvM'
    'MZzbGPQ1wIkj8Own0-GwlWdourjrCNVQLC94tL01XKIcaQrdCZoUwQU61k54yglqUAghB52VBIoDhrqe0dowDXZoh4pb'
    'YJW5928MbayBkt0AxhR6_bECm26ybmhair46h_qXb47Jm3K91Lg7sZplCJM3S1Z3ABXsac_MIH4Ca8VvH9RcEHv0eMW_'
    '9wWHnUEntkD8EGnIEZoI7skrblCHNwyzdPBrkU2qRcFDjeFsGiG4YYaRdhOw8zzfM5eLKAutU8z2pXtjmAel6oZuSZUg'
    'O6ljx8VbTAvis1GMHVWWoL8MNWi4Fxzc9DqGafT93sTmA7j4qLtnfiZtRclZgeraMm9cjIqlHD2lN212f2BcV_YFcunh'
    '8Bgx4AEOhZgtzj4DJx3g3DRTiGabP9djOz87PlutZKo7BXIQaDgJpw8vF9bYo_sJvcYnc9s4B6wXfT2_EPH3J2-AQKrj'
    'A2ClosJLgmr1wXrcHotsSr0Jk8lrfGB7g96Ty8UpNG1AuEdxDuYm52DQ2oE7yPKDhutuiBQfgPbQZGvx5G4zeIpthnZH'
    'qCp0V1FvcDsP3euoMVVOR40SkQOnksV-gORVFcjmvoQ8NLli1v2v-911Yzs3kmNPe1iZ8P_vIQOZ4HFKFEM3U49X5dxK'
    'L6X84mvXHA2yHLh12TIsX0xWnRUiyn1OI8X8EwH3jGeghEO2f8mP5aE8yuplT2V-eDrWLy_bfb7Li5enw44O-bHKn6g8'
    'PB22u93L4fCcF7U8vORf9hDlhywp-rbSA3ssfuvZol_RvfM0vJ25J7KqoinREF9UjgqPJmN1NYMk9MNDJz0KQnsc-6Uu'
    'fPj40cUPih-fvWsOnAKV4guTZdkHMuOiNt79dvUTRSy44Wedx6dcfKZNC5_zZOogl6-j8CMBP3LCL03bL_snBp02XTwj'
    'HMeG7XdP-6fdM_9Y0r6dkv8AJ1LFnQ=='
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
