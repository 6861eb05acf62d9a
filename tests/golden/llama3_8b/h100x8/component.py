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
    'eNq1WMuO67gR3esrDK3Tbsl297UDTICZAYIsAmSZRcMgKImyCVOimqT6cRf59pwq6uVHBskivbjXLBbJep6q0ptTpe7U'
    'MWllo1a_rFJjZCO3Yl-kyYdyXtuWqNk6X2dp4vumke6bKH8nvtV2na_2v61qZ5uVL50M5XmFE7_v_rzKX_erQhtDNwR7'
    'Ua1Pk0rVsjdBdEbytec8y772aeLUe6-d8kT7yy94LE2CPNHyLVnhb5Aq_VNcdU4FJ3WL9RF3YlnKoCo6nSbJW2MrZY5J'
    'LRttvmed8LxusNxlh9ekFUZ-Qz-stxuszkpW0-LyMa33Cf0S8WS-2Sd13Y6r3Xb7mnzYUhbC658qMmxecLl1xJC6xtPP'
    'lAlCdXRhrp6yl0joWx2ErWuvAjZqabxKOuuDoF0_kd4vYrgwrmUIqg0wqyi0nNlkGfSHDIPDvDY9_FVKo4RqClVVuj35'
    'B3cwC-jZOltSbR1EKbthw_ah68MtdcGu28ujywtZwvHsGF91EgIZTYKIT91W9pPuSU7GFtIIhWj7ZoKznRLhrILE8iWj'
    'v_WSKgxMbgYZgn6o37kW0sOuXnQynGNgcBDCT25BK22Ld0MMhLdj0jndBiFrUETcGzIgXjvE1pqFIcvh0WNy0VHFMcxq'
    'uMI6Ch4yndMn3ULBRn4Jr96FUXTfPj9sEmM_RY3YF9MJZFly1qfzDXkHckGq19IHjtKR4A2bkc41S1fGhZDGDNHKxnJ9'
    'S5mCJX6SOpSIyH0oxbGZnLoeJoPyROLwB2XM1Kv8_0erVsxk65WCxGH1N2ZJ3tRXp8pwjPaOt3kFY1b8M95H0nRKXkSj'
    'Guu-xUkXA9Xb3pVqTOXoxOPsO9r41_O6lOVZPQcdZPsUEcw_R_M_jwZ_ns6s2WkpBYVTnaUrGtjuiQ88M5A9Acie9r_R'
    'k5UM8jiIMURFUF9BXBTrTb8RN2cZRFAN7BfUFcTYsm8Q_XC3v0xx4899XZvJ7j44BXBqTxMD6wNPuah42zeic7bE6ikn'
    'Nzlb6xhsqpUFHDtR5jfkBxLESUgtamuqaKvIN26kybim-CKPZyPFCQYQRrGZ9ild01O-b8eHB4f5Vnb-bMP18zebCzlu'
    'dhimAeK6hHONPS3kGd4BhHjrCitdNZqt0p63SmsskphS9d4AxeLRgCLG1Br8lApOLnFqeOlTtlWxSHHbBd1Q3MxF8ddK'
    'Nv9ME-NikGbZlrMv5-WBf2_i75dkhvl98smZISrUJ8a2dZ5oxIyiCJmguu69qtJESWdgoKA6oSNyfkbdR7kM8ghRUvWG'
    'RIueYX56bwOhkCUBQDOSEDn8MLTGU0xAfkVS-O5YsdICulWaIBgF7p8AB0pS3HGV5bCjrIh1Ki136bhcICmDMsRGBzBV'
    'wxHbr6gv-Sa5wUGCxqHEkYijAjuC_tFLZddTrTRWzjapRjWIHLYb0uNLAWcIEgi4IZ-TXIoLZslf71kcLFpe33Iqx3h8'
    'yWhRqaI_LTwxmmVNZiCJOFaQs5_WXWItIXhD7fBUCRfkocjD2jEhZpJTtSIrTS6IiQ_5jVFG-yb6QIwUgjKjCc0h3smp'
    'aPBrFn9GBM3buLFGGcbJuBHLHHJjCLR0aM9QKjn55ouWLwxJaKz3E8NtSkn_3Zbi5paF-h00atXD-4HVPeHT-1A6GLuJ'
    'MwwV-u5wrR16Jo-GEVIpSDV1dvkDbiP_J2bajCWMjkQj3vONeUlGzP-ao478Zx5R-o-YMvc8jS6dvcmhey4qsC7Ma4s2'
    'xXBXNhQT23LFemTeuz0KXyQo-oAygib1u0Fqk97zOuBLIJQPZ8sBA_IJCKAc4OtGqMWbw9YfBNXt4dI2zVXziDpfIUip'
    'bMCM5aWzAP-xGI71YQg-9KhzXoqZ3Y98c4FYbKYJ_lXugzvLnIAHKR60HCw0A90VOUanbXnO4MuvtpHn53ryy_2WeO8l'
    'ithPNWNajE8upsu7bzevb4b9LOx3j4cxEZvYzKW8SpOLQo2hxgWXXbi2s0QEuzHA1Vdp-oqaBNuwtLHMvk3dx5hyuGc2'
    '4Rx_6G4QJl4BZx9s82NXaqHPm4YXsfTvKLhXRnF3gno-_kS_IqhUxyJqu5QQFxTYpyRQKxWADoGEwQW2bAgM0SWK4pux'
    'ZR4tG6vQz4PJrRHLimfKsRbbOamGBqboqxOXwWz9knxo32MG-Dk1PnGX4lgFu8R2j8iCPJh8fFg04JXCs6i9gPeo9xUK'
    '35YdUgZd2W3YE9m2Kgb4pBR1vMO4TFDNai0yCiNLT4WGMmoMwjXBjHRrjp797GyqGZHGTVTM-KV2o5UHpuobfZMu42jJ'
    'vRddMR2I_boYeyvMS9pwIRrcgoebfuirR9VvRWy-EBxfdben6SbHTEqhrFxL2HG2OtZztJfBtuntg_Fc2RfIprvHo8Xi'
    'vMs2W7x9Qph0iOmmmUw0y_yYj-R89Hx6dRLtLEYOak4Je14TabqzHMe8IB3FVKyL0xFCyCMjikC3qixN5zxk8UcM6gWp'
    'R3mwl8c9ZEfR12OV2XCn9XiCYCwex4crFs1ziKr1F3_sgPginVJ2iuLkLX7zCRZ9K1WZI_d7yAloxjG7TU4s0LUCU5CP'
    'YWZLqtdsXHoAvaVNr8mTus2gKa4Z2iShq_i1gfkGtTPue0eOqeJ61WgRgXOqdKQHaoOuGKSOt9JdtcdiZvwvO-X9oiPe'
    'ZLt9Mo9Di25-KcH_v_Vk9MEgrFS03IxVQZez4ksqjYvtNbQDXQcwXjYay2mLx3W8A_xrpJi_uFCreVL8uSOti_KgNoV8'
    'eamzTSbl9kddyFf5I9tiVb_-KA4vr1j8qLeFqpTKarWvD4VU-22xARvm8qJvKzPgze3XRxQ7GGsYvamZcrqaMw0WRrWp'
    'MHFZZ6rZY9xIDy14FLeLDTfvlh3TQvyvi_-p7g-nImRBpclpsix7hkD-tjYEwOvu6otKLNa7_LDbZruH02Cc9EbSds8p'
    'Pjah1zMWf2-gUYk_eWbbbPOabygMje3ie_w0yfnjkO92u8Nhk9GnnvbjmPwbISKYHA=='
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
