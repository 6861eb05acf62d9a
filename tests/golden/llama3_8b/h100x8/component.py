# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h100x8"
#   digest  "fbc9e2ba55f020aa37fba6a70320af67b9567037f3bedee0fe8f9bae83b26a73"
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
    'eNq1WEtv7LwN3ftXDLxuJp5HcicFvgL9ChRdFOiyiyAQZFueEUa2HEnO4y7623tIWbbn0Yt20SzuHVG0JFLk4aFenap0'
    'r96yTrZq9dsqN0a2cicOZZ59KOe17UharDfrIs_80LbSfZPk76S32q03q8Pvq8bZduUrJ0N1WuGLv-z_uNo8H1alNoZW'
    'CPasOp9ntWrkYILojeRlT5ui-DrkmVPvg3bKk-xPv2GzPAvySMPXbIW_8VT5H-Kodyo4qTuM37AmhpUMqqav8yx7bW2t'
    'zFvWyFab79kmbK9bDPfFy3PWCSO_YR_Guy1GJyXraXD-mMaHjH6J-OVme8iapkuj_W73nH3YSpbC658qKmyfsLh1pJC7'
    '1tPPnAVC9bTgRj0UT1EwdDoI2zReBUw00niV9dYHQbN-Er2fxbhgHMsQVBfgVlFqOavJKugPGcYL89oMuK9KGiVUW6q6'
    '1t3R31mDVSAv1sVSapsgKtmPE3YI_RCupQt13Z3vLV7KChfPF-PrXuJARtNBxKfuavtJ62RHY0tphEK0fbPA2V6JcFJB'
    'YvhU0N96KRUGLjfjGYK-a9-pEdLDr170MpxiYHAQ4p7cQlbZDvuGGAivb1nvdBeEbCARcW7MgLjsGFtrPgx5Dpu-ZWcd'
    'TUxh1uAqrKPgIdc5fdQdDGzll_DqXRhF6x02L9vM2E_RIPbF9AWyLDvp4-lKvIe4JNMb6QNHaRJ4w26k79rlVcaBkMaM'
    '0crOckNHmYIhfpI5lIjIfRjFsZkd-wEug_Ek4vCHJGXqRf7_o1MrVrLNSuHEYfU3Vsle1VevqvAW_R1X8wrOrPlnXI9O'
    '0yt5Fq1qrfsWR12OUm8HV6mUyvES3-a7o4l_Pa4rWZ3UY9BBdg8RwfxjdP9jcvjj9M2aLy2noHCqt7REC9898AePDGQP'
    'ALKHw--0ZS2DfBuPMUZFUF9BnBXbTb8RNycZRFAt_BfUBcTYamgR_bhuf57ixp-GpjGT331wCuDUHScFRyAjCWog2mZs'
    'Hi7ORT90Qyt6ZyuMHjZ0a842Osae6mSJe54k85byA_niJIwQjTV1dF3USxN5lsYUbhQARZI4wXjCoDbLPqVrB0r_Xdp4'
    'vD_fyd6fbLjc_mpycY6rGUZtYLqucNfGHhfnGfcBonjrSitdnbxYa89TlTUWOU2Ze-uAcrFpQE1jaQN9ygwnl7A17vQp'
    'u7pcZLztg24pjOYa-edatv_MM-NizBbFjpNxw8MX_r2Nv5-yGfUP2ScniqhRrhjq1ptMI4QUBcyE3M3gVZ1nSjoDBwXV'
    'Cx2B9DPaHs_VDoDX1tKXQ5v28lgFYRO-ez5mLx0ODCjLk21VP1DBMVbOKx2dHfox0LNXg2RF7NWDIYPjffMpSGMLU5GK'
    'AWiWRIhHNge-hAEsQBJHUTpHZVEfVJ4h4gXWn1ANrqNo5lLOwUypF4thXu3zNFzANSM_nAGaMZXcVEAupE-bbXYFtoS_'
    'Yx2lIyYD9lRffuWfyZ0kDrst2fGlAGaEO1QdBPuZNEpW2Tzfqjh4tLpcxVjvRXUaurOISBm9yeKzcp0yHLPWVac8-ylY'
    'HgNoRMpjldLkiQe1KofjInCTX9fkRzKJQxhQ8mndOVY8AmFUOE_1eiEeqQiuK-bpLHKqUeTm6Q4jHsEBxiijfRsvUSQJ'
    'Aa7RFYelOjoVb-xSxZ8Q2PM0VmxAFvBlnIjFGCk7xn8-kkgUdMaEeaHlDiM2sNeSwnWmS__dVeJqlYX5PSzq1N31UVEG'
    'gs33scBxhSHNMPKIm48b7cDskKFHnErhVBP_3NzRNvJ_UqbJWGjpk-jEW72U2OTEzV83qHb_WUdU_iPm3K1Oqytnr5Lw'
    'VotogAvz2IJMGeaO0b9gBFxX77n3Zo7CFxkOtlJFLKdSGaQ2-a2uswyDQL6T5YCB-AgIYRy8OtRiz3HqF0F1_XFl2_aC'
    '4oKN1AhSqmZwY3XuLWpSqtGpbI3BByY956WY1X3Sm-vWYjLP8K9yH8x_N4RcSPGg5eihGSkvxDE6bcfdEC9-MY08PzXT'
    'vdxOifdBorb-VDMoxvjkGr9c-3rycmX4z8J_t4AaE7GNlDPnUZ6dFUof0SssdmbKwSci3I4Brr4qM9TEXWzLp43V_3Ui'
    'RSnlsM7swjn-wLkQJl4BqO9M82YXZoGNTi2WWN5vOrhXRjFpAs1IP0GjBDGIWNttnxPiQgL_VARqlQLQIZDQXsGXLYEh'
    'uKwovxlb5ga4tQpdB5TcGrGsuPNlF9tUu0ejr8tX4hF2zryRfJVDfVSxmDxlH9oPaGd-TqQtzlKwq2CXBcAj_HBoNHFM'
    'NyY2RkQDFR41IDrnAqqvaxNZDEZ5nRsktp2KWTBZTuR97PwJz9n2Rdqh-xqoGuXXtDl7TYG7JmiSbs0Rd5gDhOpMlDEf'
    'jCiRDtPPFzPq1N9ggLqKPTOzSFoh6cc-RCSSiD5QGy5d40Xiws4aF99iqwkM2mHsIJJnro_cfiHAvpr-QH3cBt03pQPT'
    'A7jZ6kgqwJyD7fLrI8TvqqFERt4cJzo0dvbs0sXezAmRF207uWy24r4enfPe9vnFl2DqaK6IdxN-PWfS9CeZGtogHYVc'
    'rK3TJ4Syb4xKAkRcWXqH4HaSn2uIkBLPuTO3iXPIsHJoUqXaMt273xwxnqfO6EJFc4ulGv3Fzzo4vsintJ-CPHuNr1vB'
    'gjxTpXpj0omUgWUc0juwbTrQpQFTDqQcsxXVfHYubQCCa_NL8WRuO1qKZUaqJXQd31VYbzS7YPKdNKaq7VWrRQTfqVqS'
    'Hagvumage7s-3QVHF7Pif0nXDwtavi32h2zu9BYtxfIE_3_6yuCE7FQqem6GsqCr2fCllDrh7rI8AKFHQF-SlWUjyQ8T'
    '2Acg1Uoxvy0RXT0qftjJm7J6UdtSPj01xbaQcvejKeWz_FHsMGqef5QvT88Y_Gh2paqVKhp1aF5KqQ67cgu1XZ6VQ1eb'
    'EYGu31lRMOGsER6JkDldz5kGD6Ni1Wj7rDP1fGNMxkcaH4_bR9LOs1XPshD_6-N_qv9la4YsqDVdmqyqgSGQXxHHAHje'
    'X7wdxYK_37zsd8X-bksa280k2h04xRORvWz0-CmF-jV-3C12xfZ5s6UwNCikvB9vTef88bLZ7_cvL9uCHrW6D3KR10FR'
    'pATOzNckWpM3cDLMje9l-c1TWgFPDTFqbx69mNQBEjqQhpSDvK43g2unXYjqAusoEdzQEQSQcmepudZtZP5069_IZb73'
    '-GtarbX4yk_LAYWcWowpPQw1mDdJn6hWicBOj4Vj1CPL_KkdbeFnSEBehcw_C39Wnwuoe1pHFCrBkj91HU4LB_wb_hRa'
    '5g=='
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
