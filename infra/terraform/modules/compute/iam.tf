# What the instance may do: Session Manager, its bucket, its three secrets. AWS's AmazonSSMManagedInstanceCore would let it
# read every parameter of the account.

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "this" {
  name_prefix        = "${var.name}-instance-"
  description        = "The instance's own rights"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_instance_profile" "this" {
  name_prefix = "${var.name}-instance-"
  role        = aws_iam_role.this.name
}

# The least that Session Manager needs; none of these actions can be limited to a resource.
# https://docs.aws.amazon.com/systems-manager/latest/userguide/getting-started-create-iam-instance-profile.html
data "aws_iam_policy_document" "session" {
  #checkov:skip=CKV_AWS_111:These five actions take no resource; they concern the instance's own channels.
  #checkov:skip=CKV_AWS_356:These five actions take no resource; they concern the instance's own channels.
  statement {
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "Look"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [var.bucket.arn]
  }

  statement {
    sid       = "ReadTexts"
    actions   = ["s3:GetObject"]
    resources = ["${var.bucket.arn}/corpus/*"]
  }

  statement {
    sid = "WriteResults"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:ListMultipartUploadParts",
      "s3:PutObject",
    ]
    resources = [for prefix in ["checkpoints", "mlflow", "runs"] : "${var.bucket.arn}/${prefix}/*"]
  }
}

# Parameter Store decrypts with the key aws/ssm for whoever may read the parameter: no right to the key is needed.
data "aws_iam_policy_document" "secrets" {
  statement {
    actions = ["ssm:GetParameter"]
    resources = [
      var.database.password_arn,
      aws_ssm_parameter.admin_password.arn,
      aws_ssm_parameter.cookie_key.arn,
    ]
  }
}

resource "aws_iam_role_policy" "session" {
  name   = "session-manager"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.session.json
}

resource "aws_iam_role_policy" "bucket" {
  name   = "bucket"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.bucket.json
}

resource "aws_iam_role_policy" "secrets" {
  name   = "secrets"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.secrets.json
}
