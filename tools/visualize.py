"""Pictures of the inside of networks and stores: attention, matches, what a reranking transformer
attends to, descriptors on a plane; --help."""
from dolg.core.cli import run
from dolg.errors import UserError
from dolg.visual.arguments import parse_args
from dolg.visual.drawing import check_picture, write_picture
from dolg.visual.run import attention, embedding, matches, rrt
from revisitop import GroundTruthError, StoreError

COMMANDS = {"attention": attention, "matches": matches, "rrt": rrt, "embedding": embedding}


def main() -> None:
    args = parse_args(__doc__)
    check_picture(args.output)
    try:
        figure = COMMANDS[args.command](args)
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None
    write_picture(figure, args.output)
    print(args.output)


if __name__ == "__main__":
    run(main)
