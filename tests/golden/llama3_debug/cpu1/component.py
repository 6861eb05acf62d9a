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
    'eNq1WE2P4zYSvetXCLrsJTFku-12B0iAZIHdyy52LsEeGgZBSZRNmBLVJOVu59fvK5L6sp0BctgGZiwWS2Sx-Krqld6N'
    'KGUnjknLG5H-nGZK8YZvWSWK_pQlV2Gs1C1N5Kv1Ks8S2zcNNzeS_Jru03-nHTd41QmT_oteTbcp9N1ZpFb3phSprtNv'
    'N3fW7d9syu2tLaX-CfNGiLSRbe-EpRd4qnjndJcllah5rxzrFPf7ll2_yRIjPnppoAvJLz_Dlixx_ETD9yTFX7Q7-yGM'
    'gvnjoNF4PmLpDsflTlS0TJYk742uhDomNW-kuk3HhxWywXCz2yctU_wGN2BIg7PgFT2vaXC5zsf0yMKLGNV1Gwev-0Ny'
    '1SUvmJV_kJM3-cshabWhycw0lh4zL2Ci84uJH_NdEPStdEzXtRUOEzVXViSdto7RrB1FHxcWFwxj7pxoHa6OFZJParx0'
    '8spdvFIrVY8bLbkSTDSFqCrZnuyTNbwK5Pkqn0t17VjJuzihe9f17l46U5ft5dniBS8vovVXYquOwyAlyRD2KdtKf9I6'
    'yUnpgismgMebFxjdCQaUOY7hLqe_1VzKFByuog1OPj3fuWbcwq-WddydAySchi24JTOTlbrFvi5g4P2YdEa2jvEaEhbm'
    'YoyEZZN3gi4iCtjyl5mcuh57QJtEg4TW5u1tEVH_aUVqeHsJISRt2vDyLFvxUyqdTf_57XebypqCy4iU07_29kMqsKmf'
    '__u33wnT4qsTpTuGo4R9rYCdlX8MO5NXOsEvrEFsmBs7ySJKY9TG-Aj-OU5uoYlxsPLhk5Ejjej08FLFHT_GhaLLnPhy'
    '7CL8IekZTj1zx5xo4CsnFpGny74BNFjD7WV0qj33de0x6EyPoTMCMdueRoUSnhIIOBOsaPuGdUaXGP24pisxupYKLxwT'
    '0fICgB8l0x78CvQYDqtZrVUVThv0hoksGcY1UhLdZT5IDPPRFS54lH1y0_QUDNth4-hy2_LOnrVbbn83ObPjbsZnL-GM'
    'LHE9Sp8Ge3bDNggvq02huakGr1XS-qlSKw2AE4wfz1_M9nRFFqQ19LlSjMA5BVDc6ZO3VTGDv-6cbAgfU1X5teLNf7NE'
    'mYCyfJsUCNK1H7355014hvljBjwkn0Kezg7FqOQ-7FfrRAIxgvAxZrG6t6LKEsGNgnuc6JgMSeUzHH0wSyEOgJGqV2RZ'
    'uBevb31KBsYdUswgAGr8tjgyNvICREcQuVvnT1Vq5DSRJQAiw-o17l-baGfyDsDI1iOOAiLk78y6Skl4NYrGLBMrI1xE'
    'eQvmu_I8lIvDkP7upFZ8MCXIB-vNIWn411ACyNLhHNs8H-4JlZQqidJ8cks1nIXEbruhw3wJpAriBZTWmK_v39Uw8Gm5'
    'XORUjnjMaeDr8ewuBt-syA9kkAcLYvZTm0tItJSgkFgtlYmZOFZAeDwExCQyohbkn_EaQuDDfKWEkrYJF8EGCeUsJYkO'
    'wLwT8REK3KWKPQND0zRWrFGj8GaYCDUAwRGhlkXygjrio29aaL5DjEKlrR0V7mPK44HdrTI7focTteLp-kjKPeWnj5j8'
    'fZImTRfL18PLtTQgFBaEClYJWDUynvUTbcX_kjJNhiJErwQnPuoNkUlOXP9j_Vv2HR1W2mvI8o86jSyNXsTJs92oRBo3'
    'jTVquPKUJRYT3fqK9cy9D3MEX4Qman4ZsibxQMelyh51DXKMoywPQuwBA_GJU0FHArszarZnnPoOqO5fLnXTLJiVQ5IG'
    'SKlswI3lpdPI_kMxHApEBB8I3BSXbFK3g95UIWaTWYL_hbl62rXPMZJO8uifiU0txAGbuvXk2y-9mEaUn-vxVh6n2EfP'
    'UcP-EFNCC-j0pXS-9v3kcmV4T8N7j8kwhGETaFsWIxdOvAiUGWIuWO_ii7s3ipJuQLj4KlVfEUvQjTc4FNr3kX4MMYd1'
    'Jh9OAAS9AU6sQKJ9Mu03W5wMVG2k9mx-wYPtraZKZYUSnqSAqzCq06GE4qQUoRr1EHLks1IgxwFDIPRwZEN5sAMrKm4-'
    'rUxdV6PFyoD4gwsCxsJ3WUMh1lM8Re5S9NXJl8F8tUuu0vZc4e7YYpYgLJyep3ULUMEedATWBbIY2Aw1nSi9yOzhxIsE'
    'fF9x6DAgZDPED6HedHBNAPd4KqK1sXukNO3PNYsmNCY9FRmKpgGCK0ox3Kw8dg7TPVO9CDLPoEK0z483uDkqVTeQJlmG'
    'nssTL1pifCH062wgVlkCmumLULwXbNz0kVMPZ783sfkCLr7q7kAN6hrNGqFYmJbyxlnLUMtBLZ1us_sNw3tlXyCWHjYP'
    'HguNoPfZbO8TcNIBzk0zumiy-bke2fls-2zxJrgs2g3fNvnGm6vuTF3hdkOtHzcEqlATx1coOx59PmGgqkJT2-pbpIEx'
    'eX7yZG4d5hAeRV9P7Tz-_qR78Hl4aB0WKtL3IKKWX_4rAMxn2RitI4yT9_A1xGmwVqowR0_0EBQ4mcfsNjl5g5YHuEM5'
    'tUJUq71zaQMwSp0txeNxm3hSLBMpEpNVaMO9Xjx27nnvoDFWWysayULaHKscnQN1QVY-P91XnQd6zCbdv8qUl5w4ctD9'
    'RIdfFpb8_-mnT0NohoUIHpySlpPlxMLnUmoZ22V2R5qNWXlONuYtl5EnCccSRWo4mz5JEN08ASzkucO2Lva74u2Nbzd5'
    '9frytn_Z7Cpcc1m94K_e1a-bapuvN9u83L1sXtcY1WWRi7fiUFSvZZYUfVupmHdm3-fWYDqqt07E5pvolJHVFG_wL2pO'
    'ha5LG1VNWPFUOpLwQeCZdWBanf9x4acLPyL8PO-IEAmVpAvjZdn7NOg_PMW7Xy8-iYRSvc43L096wdDnjYJDnozkc95Y'
    '-a8M1B_5r4Pr_RY-S5DdurCH345U9-u33eElp48z7fWY_A-ep11A'
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
