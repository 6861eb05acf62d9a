# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s titan_slurm component.py:train           # submitted to SLURM
#   torchx run -s titan_kubernetes component.py:train      # submitted to Kubernetes
#   torchx run --workspace "" -s kubernetes -cfg queue=default component.py:train --image IMAGE \
#     --outputs /outputs --mounts type=volume,src=CLAIM,dst=/outputs   # by torchx itself, to Volcano
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
    'eNq1WUuP47gRvutXGLrksuP1o7vHvcAG2ARILgkyl0UODYOgJMpmTIlqknK359fnqyL18CMD7CENzFosvqqKVV995L45'
    'VepO7bNWNmrx6yI3RjZyKypV9Ic8OyvntW2pY7VcL1d55vumke5Ckt8WL4t_LjrpMDUot_gHTV1sFxgfjmrhbe9KtbD1'
    '4tslHG37J7-Q_tKW2v6CfqfUotFtH5SnCXJhZBdsl2eVqmVvguiM5H3Lrt_kmVPvvXYYC8mff4UueRbkgZpv2QJ_Se_8'
    'p9iK6o-NxuJ7j6U7mCuDqmiZPMveGlsps89q2WhzmcyHFrpBc_P8krXCyAvcgCY1jkpW9L2mxuk8b9OniBPRqus2Nb6-'
    '7LKzLWUhvP5OTt6snnZZax115q7x9JmzQKiOF1NfVs9R0Lc6CFvXXgV01NJ4lXXWB0G9fhS9n0RaMLZlCKoNODpRaDkN'
    'k2XQZxnSkXptepxoKY0SqilUVen24B-swUMgXy1Xc6mtgyhllzpsH7o-3Epnw3V7erR4IcuTavlIfNVJKGQ0KSI-dFvZ'
    'D1onOxhbSCMU4vHCAmc7JRBlQaL5vKK_5VwqDBxukg5BP7TvWAvp4VcvOhmOMSSChS44JTeTlbbFviHGwNs-65xug5A1'
    'JCL2pRyJy2ZvFLrIKMQWH2Z26HrsgdEkGiS0tmwvVxn1r1YtnGxPMYW0XzSyPOpW_bLQwS_-_u13v9A1JZdTC0n_2stP'
    'C4VNuf-v336nmFafnSrDPpoS9_UKelb8GXcmr3RKnkSD3HAXcdBFkqasTfkR_bOf3EIdY2PJ6ZOTI53q7DCpkkHu00LJ'
    'ZUF9BnFSbCR9w6lHGURQDXwV1FXm2bJvEBqikf40OtUf-7rmGAyuRzM4hZxtD-MAR8knKQUpwbISjlPIPxeVavtGdM6W'
    'aH1Z0wk5W2uD-ftMtbJA_I-SaUt5RjA5CSNEbU0VjY_jho48G9o1EIqOdjVInOBki-c9yj6ka3rKje2wcToB38rOH224'
    '3v6mc6bHTQ-DmQpOlzgtYw-DPs_DNsg2b11hpasGJ1bac1dpjUW8U1Tf21_M9gxFHqU1xktjBMXqlE9ppw_ZVsUsG2wX'
    'dEPhMhWZ3yrZ_DvPjItBt9pmBXJ2za1X_t7Eb6g_AuIu-1D6cAyoTaVkFFiuM40AUhQuI6jVvVdVninpDNwTVCd0xJiP'
    'aHpUq-mBPI2lmX0z7OWxCoImXDrWcqxs-WAaahFhsbFyWungbN-lMM_eDJINkVf1huyNp81aeMZ9JFIAjg0CxCIbA0dC'
    'fRYgBaNo0KK0AE6VZ4h2gdVrRJV1yfrsDWGoW45jyrpYJHIfKqNxVkk0Qlkqv3A8gSOcEsrjUJN2A8beSL16F0aRZ9eb'
    'XdbIz6HOkKaDHdvV6kcuGj1K4rDdkDGfCnhE5IOwU7CrfzjCwafl9SLGei_KY9-eRMS66FEWn5RrlYlo5cpjnn0XLI8h'
    'lLDuUI5pwg1mDbPIHZy7JEeSRRzDgJIP606xHBCMAv49FbOZONVpHFnM00nkVK3IweM5RjyC_cYoo30TT1IMEkJWo0sO'
    'THUg1kR4cj3EHxHaUzdWrFFJMTN2xEqFnE0ZkCeKhWrHoDAtNN8hgQN7bRhwm-ocUOJmlZn5HSxq1cP1UTp6gs33VKK4'
    'lNDIkIrs3eRaO9Ae5OgBWiloNfKy9YPRRv6hwdQZSyVNiU68HzekNjlx_bf1X_IfjBGlP8ficz-m0aWzV4n2aDcq5C5M'
    'bQumYZhYRf-ipnNdfeTeuz4KX-Q2mEkZwZxKZZDa5PdjnWUgBPYdLQcMxAdJtANIeKPUbM_U9YOgup1c2qa54n8BtQNB'
    'StUMbixPnUVRGmr0ULdS8IFmTnkppuF-GDcVrllnnuG_yp2ZHL6s0NJBy-SfifNdiWNs2pavCLz0VTey_FiPp3LfJd57'
    'idL6XU2IGKOTK_x87dvO65XhPQvv3aNpTMMmkss8ZS6ceFKofsSvsN6JOQcrRagdI1x9lqaviLzYhhWO9f9tZEVDzmGd'
    'yYdTAIJ0IU68AlI_6ObNriwDoRwvIGJ-wIPuraVS55VRzJ1AoQTRh1jZYSllqEVBhRx4VipgHGII1w44siEc7EDWigvD'
    'ynQ3bKxaokrj2JcIY8V3QfavHQp3Mve2cA0kwk5Jl3hX0VcHFevIc3bWvpcGByyueinOVbBz7PeIPCiNyw1zjZGJEctA'
    'gQf8R7dcofRtWSKLQSZnaTHgQdPBfzEDRtOJoaeLMGE5Gz9LOdyxeqpE-S1lzt6GsF0SLEm35HjbTbFBNSbKmAxGhBhM'
    '6qaTSWOqC-ifLuNlkikkrTCMj-8QYmCIeQa-zGUrnSRO7KRx8g22GoGg6dPtYXDNrcrNJ2Lrs-52dBVf41pKmcDUAH62'
    'OhIKsOZg2_xWhTiv7Avk45060aHxyssune3NjBAp0TSjyyYrHo8jPR9tn1_NBE3HxYoviPzEIE13pPvvdkOXXOko5mJd'
    'HacQwu4ZkwRYuLJ0QefL4EDbmOM86FvHPqRY0dfTwwX-_sfFiLF8uBVdDdF8vVK1_uT3Dqgv8jHjxyjP3uK7T7CgzlSl'
    '9sw2kTOwjEN6C65NCl0bcJMEdMujes_OpQ1Aa21-LR7NbZKlWCbRLKGr-ODA45LZKybfw4ixYnvVaBGhd6yUZAdqi64Y'
    '424r1x1HF9PYP0rXr4l54rEvEyd_utLk_09hGaWQpUpFD06YFnQ5XQXmUroNt9cVAlCdkH1OWOa3SacPGo4lmtVIMT2-'
    'EGU9IFjIc7ttXbw8F6-vcrtZVV-fXl-eNs8VjrmsnvBXP9dfN9V2td5sV-Xz0-brGq26LFbqtdgV1dcyz4q-rUxCotlL'
    '5BowaXofVAJJomROV1O-wb-oWxWuftaZaooVpuOJyA8CZueRrXX8E-JPF39U_Hl8LUMmVJoOTJZlzzDIT2zp7NdXjz-x'
    '3K9Xm6cHF9J42RwFu1U2Etj57Y4fUOiSxu-g65ctfJYB3bq4B29HQ1_Wr8-7pxU9Q7VncojXAZkcgdJHpyHGOTXfhv4l'
    'OQKqYWB6GMvv3sxWcFIfw_XuzYoZHTChBWsYkpDX9aZ3zbgL8VyAHWWA61vCgIly6CbSfjpufq3mBwD-GldrLGb5cTnA'
    'kFOzNuWFodvlXWEeaFaBiB5eBVO4I738sUm20JWaMK9Ewp-EP6mPGdY9LyMMFaDIH7oKx5kDkganvqDaBr63z0461vf_'
    '2AL-zvnpxXeyvAbdRP2j4e-96tVwRO6M6kjRRUYnxziN7AsX6Cd9Okv2m-h61P_kj3iwM3lnEfaX4XmVwJ1idXgYtOi2'
    'h7E7tkYuy1jjHJFZBAQVg_F5sj3rSkscavMzuqDy5MYXegruW1xPRe85VdcM8VE0VAaW1TftNMbZ2UscPy0SSg1ixvKb'
    '4sT1MpjZgb2snnarB2ezpBAQkeNat38wQNY1VezLoz4jC2X8w1lta-Mz2MPuwXcPO8_W9IiPZcrTPVBO8v-7yIPGnexL'
    '5Cb-S-pHLKQa9fMoGb00PSBGsKJwgqEUD7PAQWRRPR4OOn-gVGeBo_8FknMfUw=='
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
        mounts: mounts of the container, as in torchx: type=bind,src=/host,dst=/container or
            type=volume,src=claim,dst=/container
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
                entrypoint='python' if image else sys.executable,
                args=args,
                env={key: value.replace("$", "$$") for key, value in environment.items()},
                num_replicas=1,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
