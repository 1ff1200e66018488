"""Builds the MuJoCo model of a tabletop plan around Gymnasium-Robotics' Adroit hand (Apache-2.0, Vikash Kumar).

MuJoCo's world has z up; ours has y down. `to_mujoco` and `from_mujoco` are the one place where they meet. The hand's
wrist is welded to a mocap body that the simulator moves; its fingers are driven by position servos.
"""

# mujoco's compiled module has no stubs.
# pyright: reportAttributeAccessIssue=false

import importlib.util
from pathlib import Path

import numpy as np

from worldscape.data.tabletop_layout import ObjectPlan, Plan, Surface
from worldscape.data.tabletop_meshes import load_coarse_mesh
from worldscape.data.tabletop_textures import paint

try:
    import mujoco
except ImportError as error:
    raise ImportError(
        f"WorldScape-Tabletop needs MuJoCo ({error}); install it with `pip install 'worldscape[sim]'`."
    ) from error

TIMESTEP = 0.0025  # seconds
PICTURE_PIXELS = 512  # side of the largest buffer
NEAR, FAR = 0.02, 6.0  # metres
HAND_JOINTS = (("THJ4", "THJ3", "THJ1", "THJ0"),) + tuple(
    tuple(f"{finger}FJ{joint}" for joint in (3, 2, 1, 0)) for finger in "FMRL"
)
"""Adroit's names of the joints of `hand_model.HandSkeleton`, [5][4]."""
HELD_JOINTS = ("WRJ1", "WRJ0", "LFJ4", "THJ2")
FINGER_BODIES = tuple(
    f"{finger}{part}" for finger in ("ff", "mf", "rf", "lf") for part in ("proximal", "middle", "distal")
)
THUMB_BODIES = ("thproximal", "thmiddle", "thdistal")

_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # world axes -> MuJoCo's
_MESHES = ("wrist", "palm", "lfmetacarpal", "knuckle", "F3", "F2", "F1", "TH3_z", "TH2_z", "TH1_z")
_SHAPES = {"capsule": "CAPSULE", "box": "BOX", "cylinder": "CYLINDER", "sphere": "SPHERE", "ellipsoid": "ELLIPSOID"}


def to_mujoco(points: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] in world axes -> in MuJoCo's."""
    return points @ _AXES.T


def from_mujoco(points: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] in MuJoCo's axes -> in world axes."""
    return points @ _AXES


def rotation_to_mujoco(rotation: np.ndarray) -> np.ndarray:
    """Rotation [..., 3, 3] of a body in world axes -> in MuJoCo's."""
    return _AXES @ rotation


def rotation_from_mujoco(rotation: np.ndarray) -> np.ndarray:
    """Rotation [..., 3, 3] of a body in MuJoCo's axes -> in world axes."""
    return _AXES.T @ rotation


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] -> quaternion [4], w first."""
    value = np.zeros(4)
    mujoco.mju_mat2Quat(value, np.ascontiguousarray(rotation, dtype=np.float64).ravel())
    return value


def build_model(plan: Plan, field_of_view: float) -> mujoco.MjModel:
    """The compiled model of a plan; field of view in degrees. A pure function of its arguments."""
    spec = mujoco.MjSpec.from_string(_hand_xml(plan))
    for name in _MESHES:
        mesh = load_coarse_mesh(_adroit_folder() / "resources" / "meshes" / f"{name}.stl")
        shell = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        spec.add_mesh(name=name, uservert=mesh.vertices.ravel(), userface=mesh.faces.ravel(), inertia=shell)
    _hold_and_drive(spec)
    _add_furniture(spec, plan)
    for index, item in enumerate(plan.objects):
        _add_object(spec, f"object{index}", item)
    _add_target(spec, plan)
    spec.worldbody.add_camera(name="eyes", fovy=field_of_view)
    return spec.compile()


def _adroit_folder() -> Path:
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            "WorldScape-Tabletop needs the hand model in gymnasium-robotics; install it with "
            "`pip install 'worldscape[sim]'`."
        )
    return Path(package.submodule_search_locations[0]) / "envs" / "assets" / "adroit_hand"


def _hand_xml(plan: Plan) -> str:
    folder = _adroit_folder()
    skin = " ".join(str(channel) for channel in plan.skin)
    ambient, light, beam = (
        " ".join(f"{value:.4f}" for value in values)
        for values in (plan.ambient, plan.light_colour, -to_mujoco(np.array(plan.light)))
    )
    return f"""<mujoco>
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="{PICTURE_PIXELS}" offheight="{PICTURE_PIXELS}"/>
    <quality shadowsize="0" offsamples="0"/>
    <map znear="{NEAR}" zfar="{FAR}"/>
    <headlight ambient="{ambient}" diffuse="0.12 0.12 0.12" specular="0 0 0"/>
  </visual>
  <statistic extent="1" center="0 0 0"/>
  <default>
    <joint limited="true" margin="0.01" armature="0.001" damping="0.1" frictionloss="0.001"/>
    <geom friction="1.2 0.01 0.002" margin="0.0005"/>
    <default class="D_Touch"><site group="4"/></default>
    <default class="DC_Hand"><geom conaffinity="0" group="4" condim="4"/></default>
    <default class="D_Vizual"><geom type="mesh" contype="0" conaffinity="0" group="1" material="skin"/></default>
  </default>
  <asset>
    <material name="skin" rgba="{skin} 1" specular="0.25" shininess="0.3"/>
    <material name="MatColl"/>
  </asset>
  <worldbody>
    <light directional="true" dir="{beam}" diffuse="{light}" specular="0.25 0.25 0.25" castshadow="false"/>
    <body name="command" mocap="true"/>
    <body name="hand" gravcomp="1"><freejoint/><include file="{folder / "adroit_model.xml"}"/></body>
  </worldbody>
</mujoco>"""


def _hold_and_drive(spec: mujoco.MjSpec) -> None:
    """Hold what the action does not move, give each other joint a servo, weld the wrist to its command."""
    for name in HELD_JOINTS:
        spec.delete(spec.joint(name))
    for body in spec.bodies:
        if body.name not in ("world", "command"):
            body.gravcomp = 1.0
    wrist = spec.body("wrist")
    wrist.pos, wrist.quat = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)
    for names in HAND_JOINTS:
        for name in names:
            servo = spec.add_actuator(name=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=name)
            servo.set_to_position(kp=5.0)
            servo.forcelimited, servo.forcerange = 1, (-1.0, 1.0)
    for thumb in THUMB_BODIES[1:]:
        for finger in FINGER_BODIES:
            spec.add_pair(geomname1=f"C_{thumb}", geomname2=f"C_{finger}", condim=1)
    weld = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY, name1="command", name2="hand"
    )
    weld.data[:] = 0.0
    weld.data[[6, 10]] = 1.0  # no rotation between the two; turning weighs like moving
    weld.solref = (0.008, 1.0)


def _add_material(spec: mujoco.MjSpec, name: str, surface: Surface, is_flat: bool) -> str:
    """Flat surfaces repeat the picture; solid ones wear it on each side of a cube."""
    kind = mujoco.mjtTexture.mjTEXTURE_2D if is_flat else mujoco.mjtTexture.mjTEXTURE_CUBE
    pixels = paint(surface)
    sides = pixels if is_flat else np.concatenate([pixels] * 6)
    texture = spec.add_texture(name=name, type=kind, width=pixels.shape[1], height=len(sides), nchannel=3)
    texture.data = sides.tobytes()
    material = spec.add_material(name=name, texrepeat=(surface.repeat, surface.repeat), specular=0.15, shininess=0.3)
    textures = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = name
    material.textures = textures
    return name


def _add_furniture(spec: mujoco.MjSpec, plan: Plan) -> None:
    """Table (a solid block under a picture), floor, three walls, and the forearm's sleeve."""
    world, (half_x, half_y), centre = spec.worldbody, plan.table_size, 0.1
    table, walls, floor, sleeve = (
        _add_material(spec, name, surface, is_flat)
        for name, surface, is_flat in (
            ("table", plan.table, True),
            ("walls", plan.walls, True),
            ("floor", plan.floor, True),
            ("sleeve", plan.sleeve, False),
        )
    )
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    dark = (*(0.5 * channel for channel in plan.table.first), 1.0)
    unseen = {"contype": 0, "conaffinity": 0}
    world.add_geom(name="table", type=box, size=(half_x, half_y, 0.02), pos=(0, centre, -0.02), rgba=dark, condim=4)
    world.add_geom(type=plane, size=(half_x, half_y, 1), pos=(0, centre, 0.0005), material=table, **unseen)
    world.add_geom(type=plane, size=(2.5, 2.5, 1), pos=(0, 0.5, -0.7), material=floor, **unseen)
    for place, normal in (((0, 1.5, 0), (0, -1, 0)), ((-1.4, 0.5, 0), (1, 0, 0)), ((1.4, 0.5, 0), (-1, 0, 0))):
        facing = quaternion(_facing(np.array(normal, dtype=float)))
        world.add_geom(type=plane, size=(2.0, 1.5, 1), pos=place, quat=facing, material=walls, **unseen)
    sleeve_geom = {"type": mujoco.mjtGeom.mjGEOM_CAPSULE, "material": sleeve, "mass": 0.0, "group": 1}
    hand = spec.body("hand")
    hand.add_geom(**sleeve_geom, **unseen, size=(0.026, 0, 0), fromto=(0, 0.0, -0.012, 0, 0.0, -0.3))


def _add_target(spec: mujoco.MjSpec, plan: Plan) -> None:
    """A ball in the air, or a ring on the table; nothing touches it."""
    place, unseen = to_mujoco(np.array(plan.target)), {"contype": 0, "conaffinity": 0}
    colour, pale = (*plan.target_colour, 1.0), (*(0.5 + 0.5 * channel for channel in plan.target_colour), 1.0)
    if place[2] > 0.01:
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.016, 0, 0), pos=place, rgba=colour, **unseen)
        return
    for radius, height, shade in ((0.05, 0.001, colour), (0.034, 0.0015, pale)):
        disc = mujoco.mjtGeom.mjGEOM_CYLINDER
        spec.worldbody.add_geom(type=disc, size=(radius, height, 0), pos=place, rgba=shade, **unseen)


def _facing(normal: np.ndarray) -> np.ndarray:
    """Rotation whose z axis is a horizontal `normal` and whose y axis is up."""
    up = np.array([0.0, 0.0, 1.0])
    return np.stack([np.cross(up, normal), up, normal], -1)


def _add_object(spec: mujoco.MjSpec, name: str, item: ObjectPlan) -> None:
    half_x, half_height, half_z = item.size
    body = spec.worldbody.add_body(name=name, pos=(item.place[0], item.place[1], half_height + 0.001))
    turn = np.array([np.cos(item.heading / 2), 0.0, 0.0, -np.sin(item.heading / 2)])
    body.quat = turn
    body.add_freejoint(name=name)
    geom = body.add_geom(
        name=name,
        type=getattr(mujoco.mjtGeom, f"mjGEOM_{_SHAPES[item.shape]}"),
        material=_add_material(spec, name, item.surface, is_flat=False),
        mass=item.mass,
        condim=6,
        friction=(1.2, 0.02, 0.006),  # round objects come to rest within a hand's width
    )
    if item.shape == "capsule":
        geom.size = (half_height, half_x - half_height, 0)
        geom.quat = (np.sqrt(0.5), 0, np.sqrt(0.5), 0)
    elif item.shape == "cylinder":
        geom.size = (half_x, half_height, 0)
    else:
        geom.size = (half_x, half_z, half_height)
