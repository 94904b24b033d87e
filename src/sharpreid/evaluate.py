"""Score a run's checkpoint again: ``python -m sharpreid.evaluate checkpoint=RUN/checkpoints/final.ckpt``."""

import sys

USAGE = """\
usage: python -m sharpreid.evaluate checkpoint=RUN/checkpoints/final.ckpt [key=value ...] [output=FILE.json]

Scores the checkpoint by its run's own config (RUN/config.yaml). Without further values the score is that of
RUN/scores.json, digit for digit on the same machine. What concerns the scoring can be overridden:

  data.eval_transform.crops=ten_crop     plain | flip | ten_crop | ten_crop_8_7
  model.sampler.test_mask=expected       noise_free | expected | mean | hard | sample
  model.sampler.sample_noise=per_view    shared | per_view, of test_mask=sample
  recalibrate=2000                       recompute batch-norm statistics on so many training images, under the
                                         test mask; 0, the default, keeps those of the training
  re_ranking=k_reciprocal                none | k_reciprocal | query_expansion, with the values of
                                         conf/re_ranking/; then re_ranking.k1=30 changes one of them
  data_root=/path data.source.root=/path trainer.accelerator=cpu data.num_workers=0
  image.height=256 image.width=128 trainer.precision=32-true protocol.denominator=all_queries

output=FILE.json also writes the scores to a file.

With --multirun values may be lists, as in Hydra, and checkpoint=... may be given several times. Every
combination is scored; one table has them all, seeds of the draws taken together. FILE.json then holds a list.

  --multirun model.sampler.test_mask=noise_free,expected,hard
  --multirun model.sampler.test_mask=sample model.sampler.draws=1,8 'model.sampler.seed=range(0,5)'
  +experiment=test_mask    such lists from conf/evaluation/test_mask.yaml
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 2 for a wrong call, 1 for a checkpoint that cannot be scored."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.config.overrides import find_misspelt_of_evaluation  # Hydra, not for the help

    if problem := find_misspelt_of_evaluation(arguments):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    from sharpreid.run.evaluation import run  # slow, and not for the help

    run(arguments, USAGE)


if __name__ == "__main__":
    main()
